# The source of truth for set-up and commands: `make help`.
SCALE ?= nano
PYTHON ?= python3
EXTRAS ?= dev
OVERRIDES ?=
ONLY ?=
CASES ?= 10000
SEED ?= 0
KILLS ?= 100
VENV := .venv
BIN := $(VENV)/bin
CDRL := $(BIN)/cdrl
COMMA := ,
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
READY := $(VENV)/.ready-$(subst $(COMMA),-,$(EXTRAS))

.DEFAULT_GOAL := help

help:  ## Show this list
	@echo "make TARGET [SCALE=nano|micro|mini|paper] [OVERRIDES='key=value …'] [EXTRAS=dev,ray,slurm]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; use make PYTHON=python3.x"; exit 1; }
	@echo "setting up $(VENV) (once; PyTorch is large: allow a few minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

setup: $(READY)  ## Create .venv with the pinned versions (every target does this by itself)

# An experiment is the target of its name; what they have in common stands below them.
reproduce-table1:  ## Table 1: CDRL, DRL and the short-run EBM at equal budget
ladder:  ## Quality against the size of the images, CIFAR-10 at 8×8 and 16×16 (SCALE=micro)
reproduce-imagenet32:  ## ImageNet 32×32 table
speedup:  ## Quality against sampling cost, CDRL against DRL
langevin-steps:  ## Quality against Langevin steps a level
ablations:  ## Noise schedule, shared noise, initializer: on and off, alone and in pairs
initializer:  ## With and without the initializer, over the length of the chain (SCALE=micro)
stability:  ## How many of ten starts diverge?
guidance:  ## Classifier-free guidance curves
compose:  ## Products and negations of concepts
inpaint:  ## Inpainting with several masks
ood:  ## Out-of-distribution detection
toy:  ## Two-dimensional densities, measured against the truth
chains:  ## Are the chains sampling? Acceptance, effective sample size, drift
frontier:  ## Quality against training budget, with a plain DDPM
protocols:  ## Do runs rank at 96×96 pixels as at 224×224? (SCALE=micro)

EXPERIMENTS := reproduce-table1 ladder reproduce-imagenet32 speedup langevin-steps ablations initializer stability guidance compose inpaint ood toy chains frontier protocols
$(EXPERIMENTS): $(READY)
	$(CDRL) run experiment=$(subst -,_,$(@:reproduce-%=%)) scale=$(SCALE) $(OVERRIDES)

reproduce-all: $(READY)  ## Every experiment at this scale, then the report; resumable
	$(CDRL) run experiment=all scale=$(SCALE) $(OVERRIDES)
	$(CDRL) report --page

report: $(READY)  ## results/report.html from everything measured so far
	$(CDRL) report

verify-results: $(READY)  ## Derive every committed number, table and quotation again; fails on any difference
	$(CDRL) report --verify

demo: $(READY)  ## Sample images on the CPU from the committed weights, without training: build/demo.png
	$(CDRL) demo --device cpu

bench: $(READY)  ## Benchmarks (= pytest --benchmark-only) and their table of ratios
	$(BIN)/python -m pytest --benchmark-only tests/benchmarks

test: $(READY)  ## The tests, in minutes, and verify-results
	$(TEST) -m "not slow"
	$(CDRL) report --verify

test-all: $(READY)  ## The tests with those that take long; EXTRAS=dev,ray,slurm for those of the other engines
	$(TEST) $(ONLY)

fuzz: $(READY)  ## 10,000 damaged files for each reader, and as many hostile command lines; CASES=n for others
	CDRL_FUZZ=fuzz CDRL_FUZZ_CASES=$(CASES) $(TEST) tests/fuzz

soak: $(READY)  ## 100 SIGKILLs, 10,000 iterations, a clock that jumps: most of an hour; SEED=n, KILLS=n for others
	$(BIN)/python -m tests.soak --seed $(SEED) --kills $(KILLS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

doctor: $(READY)  ## Which data, weights and statistics are here, and what is missing without them
	$(CDRL) doctor

clean:  ## Remove runs and caches (results stay)
	rm -rf runs .cache

.PHONY: help setup $(EXPERIMENTS) reproduce-all report verify-results demo bench test test-all fuzz soak lint doctor clean
