# The source of truth for set-up and commands: `make help`.
SCALE ?= nano
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := $(BIN)/python -m experiments
OVERRIDES ?=

.DEFAULT_GOAL := help

help:  ## Show this list
	@echo "make TARGET [SCALE=nano|mini|paper] [OVERRIDES='key=value …']"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; use make PYTHON=python3.x"; exit 1; }
	@echo "setting up $(VENV) (once; PyTorch is large: allow a few minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv with the pinned versions (every target does this by itself)

reproduce-table1: $(READY)  ## Table 1: CDRL, DRL and the short-run EBM at equal budget
	$(RUN) experiment=table1 scale=$(SCALE) $(OVERRIDES)

reproduce-imagenet32: $(READY)  ## ImageNet 32×32 table
	$(RUN) experiment=imagenet32 scale=$(SCALE) $(OVERRIDES)

speedup: $(READY)  ## Quality against sampling cost, CDRL against DRL
	$(RUN) experiment=speedup scale=$(SCALE) $(OVERRIDES)

langevin-steps: $(READY)  ## Quality against Langevin steps a level
	$(RUN) experiment=langevin_steps scale=$(SCALE) $(OVERRIDES)

ablations: $(READY)  ## Noise schedule, shared noise, initializer: on and off, alone and in pairs
	$(RUN) experiment=ablations scale=$(SCALE) $(OVERRIDES)

guidance: $(READY)  ## Classifier-free guidance curves
	$(RUN) experiment=guidance scale=$(SCALE) $(OVERRIDES)

compose: $(READY)  ## Products and negations of concepts
	$(RUN) experiment=compose scale=$(SCALE) $(OVERRIDES)

inpaint: $(READY)  ## Inpainting with several masks
	$(RUN) experiment=inpaint scale=$(SCALE) $(OVERRIDES)

ood: $(READY)  ## Out-of-distribution detection
	$(RUN) experiment=ood scale=$(SCALE) $(OVERRIDES)

toy: $(READY)  ## Two-dimensional densities, measured against the truth
	$(RUN) experiment=toy scale=$(SCALE) $(OVERRIDES)

chains: $(READY)  ## Are the chains sampling? Acceptance, effective sample size, drift
	$(RUN) experiment=chains scale=$(SCALE) $(OVERRIDES)

frontier: $(READY)  ## Quality against training budget, with a plain DDPM
	$(RUN) experiment=frontier scale=$(SCALE) $(OVERRIDES)

reproduce-all: $(READY)  ## Every experiment at this scale, then the report; resumable
	$(RUN) experiment=all scale=$(SCALE) $(OVERRIDES)
	$(BIN)/python -m experiments.report --page

report: $(READY)  ## results/report.html from everything measured so far
	$(BIN)/python -m experiments.report

demo: $(READY)  ## Sample images on the CPU from the committed weights, without training: build/demo.png
	$(BIN)/python -m experiments.demo

bench: $(READY)  ## Benchmarks (= pytest --benchmark-only) and their table of ratios
	$(BIN)/python -m pytest --benchmark-only tests/benchmarks

test: $(READY)  ## The tests
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

doctor: $(READY)  ## Which data, weights and statistics are here, and what is missing without them
	$(BIN)/python -m experiments.doctor

clean:  ## Remove runs and caches (results stay)
	rm -rf runs .cache

.PHONY: help setup reproduce-table1 reproduce-imagenet32 speedup langevin-steps ablations guidance compose inpaint ood toy chains frontier reproduce-all report demo bench test lint doctor clean
