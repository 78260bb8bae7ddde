"""Training beside the authors' own loop: both in float64, from the same weights, with the same draws.

With ``CDRL_RELEASED_REPO`` naming a checkout of the authors' release, its `train()` runs five iterations here (see
`tests.cdrl.released_training`), and all that an iteration computes and changes must be ours; ``CDRL_RELEASED_WRITE=1``
writes ``training_parity_golden.json`` anew. Without a checkout our iterations must give the numbers in that file, which
are the release's.

Networks are small; else the settings are the released ones (`cdrl.released.settings`, `cdrl.released.optimisation`) but
for higher learning rates, shorter warm-up, and no dropout. Every batch has all six levels; both clips are active.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl import langevin, released
from cdrl.cooperative import Cooperative
from cdrl.fast import Engine
from cdrl.langevin import Chain, Refined
from cdrl.learner import Optimisation
from cdrl.networks.energy import energies
from tests.cdrl.released_networks import SIZES, WRITE, needs_repository, numbers, released_file
from tests.cdrl.released_training import (
    BATCH,
    ITERATIONS,
    LEVELS,
    RATES,
    SEED,
    WARM_UP,
    Record,
    batch,
    float64,
    record_of,
    theirs,
    training_draws,
    vectors,
)

GOLDEN = Path(__file__).with_name("training_parity_golden.json")
LAYOUTS = json.loads(Path(__file__).with_name("released_golden.json").read_text())

PROJECTIONS = 4
EXACT, STORED = 1e-10, 1e-9
"""How far a quantity may be from the release's, in units of its largest value or (see `distance`) of its norm; and from
what is stored, where another processor rounded it."""


# --- Our iterations, observed -----------------------------------------------------------------------------------------


def trained(variant: str, folder: Path) -> list[Record]:
    """Our loop on the same batches; one record an iteration."""
    layouts = {name: LAYOUTS[variant]["layout"][name] for name in ("pi", "p")}
    with float64():
        networks = released.load(released_file(folder / "start.pth.tar", layouts), "live")
    for network in networks:
        network.requires_grad_(True)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    observed = Observed()
    method = Cooperative(*networks, released.settings(), *optimisation(), seed=SEED, engine=observed.engine)
    observed.learners(method)
    records = []
    for iteration in range(ITERATIONS):
        before = state(method)
        images, labels = batch(variant, iteration)
        method.train_step(images, labels, iteration)
        records.append(observed.values | record_of(before, state(method), observed.gradients()))
    return records


def optimisation() -> tuple[Optimisation, Optimisation]:
    """The released settings of both networks, at the rates that theirs run with here."""
    energy, initializer = released.optimisation()
    return (
        replace(energy, learning_rate=RATES["energy"], warm_up=WARM_UP),
        replace(initializer, learning_rate=RATES["initializer"], warm_up=WARM_UP),
    )


def state(method: Cooperative) -> dict[str, Record]:
    networks = [learner.network for learner in method.learners.values()]
    averages = [learner.ema.average for learner in method.learners.values()]
    return {"live": vectors(*networks), "average": vectors(*averages)}  # type: ignore[arg-type]


class Observed:
    """What goes through an engine in one iteration, and the gradients as they stand before the clip."""

    def __init__(self) -> None:
        self.values: Record = {}
        self.engine = Engine("observed", self.refine, self.prepare)
        self._gradients: dict[str, list[Tensor]] = {}

    def refine(self, chain: Chain) -> Refined:
        refined = langevin.refine(chain)
        self.values |= {"x_t": chain.anchor, "proposal": chain.start.detach(), "refined": refined.y}
        return refined

    def prepare(self, function: Any) -> Any:
        def observed(images: Tensor, *arguments: Any) -> Tensor:
            values = function(images, *arguments)
            self.values |= {"positive": images[:BATCH].detach(), "energies": values.detach().reshape(2, BATCH)}
            return values

        return observed if function is energies else function

    def learners(self, method: Cooperative) -> None:
        for name, learner in method.learners.items():
            self._gradients[name] = [torch.empty_like(p) for p in learner.parameters]
            for p, kept in zip(learner.parameters, self._gradients[name], strict=True):
                p.register_post_accumulate_grad_hook(partial(keep, kept))
            descend = learner.descend

            def observed(loss: Tensor, *arguments: Any, name: str = name, descend: Any = descend) -> Tensor:
                self.values[f"{name} loss"] = loss.detach()
                return descend(loss, *arguments)

            learner.descend = observed  # type: ignore[method-assign]

    def gradients(self) -> Record:
        return {name: torch.cat([g.flatten() for g in kept]) for name, kept in self._gradients.items()}


def keep(kept: Tensor, p: Tensor) -> None:
    assert p.grad is not None
    kept.copy_(p.grad)


# --- Comparison -------------------------------------------------------------------------------------------------------


def distance(name: str, mine: Tensor, other: Tensor) -> float:
    """In units of the largest value; of what Adam made, in units of the norm.

    Adam divides a gradient by its own size: where the true one is zero (a bias before a normalisation of one channel)
    rounding alone decides the update, and single entries differ by 1e-9 of the largest.
    """
    order = 2.0 if name.endswith(("update", "average")) else torch.inf
    difference, size = (float(torch.linalg.vector_norm(values, order)) for values in (mine - other, other))
    return difference / size if size else difference


def fingerprint(values: Tensor) -> list[float]:
    """A tensor in a few numbers: its norm, and its projections on directions that look random."""
    flat = values.double().flatten()
    directions = (numbers(len(flat), 700 + number) for number in range(PROJECTIONS))
    return [float(f"{float(value):.12g}") for value in (flat.norm(), *(flat @ direction for direction in directions))]


# --- Tests ------------------------------------------------------------------------------------------------------------


@needs_repository
@pytest.mark.parametrize("variant", SIZES)
def test_trains_as_the_authors_do(variant: str, tmp_path: Path) -> None:
    with theirs(variant) as authors:
        expected = authors.train(variant, tmp_path)
    mine = trained(variant, tmp_path)
    for iteration, (ours, other) in enumerate(zip(mine, expected, strict=True), start=1):
        assert ours.keys() == other.keys()
        found = {name: distance(name, ours[name], other[name]) for name in other}
        print(f"{variant}, iteration {iteration}: " + ", ".join(f"{name} {d:.0e}" for name, d in found.items()))
        assert max(found.values()) < EXACT, f"iteration {iteration}: {found}"
        for network in ("energy", "initializer"):
            assert other[f"{network} gradient"].norm() > 1.5, "a clip that does nothing compares nothing"

    stored = [{name: fingerprint(values) for name, values in record.items()} for record in expected]
    if WRITE:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {variant: stored}, indent=0) + "\n")
    assert_stored(variant, stored)


@pytest.mark.parametrize("variant", SIZES)
def test_gives_the_numbers_of_the_authors_loop(variant: str, tmp_path: Path) -> None:
    mine = trained(variant, tmp_path)
    assert_stored(variant, [{name: fingerprint(values) for name, values in record.items()} for record in mine])


def assert_stored(variant: str, records: list[dict[str, list[float]]]) -> None:
    """Differences in units of the norm, which is the first number."""
    for iteration, (mine, stored) in enumerate(zip(records, json.loads(GOLDEN.read_text())[variant], strict=True)):
        assert mine.keys() == stored.keys()
        for name, expected in stored.items():
            difference = max(abs(a - b) for a, b in zip(mine[name], expected, strict=True))
            assert difference <= STORED * expected[0], f"iteration {iteration + 1}: {name} differs by {difference:.1e}"


@pytest.mark.parametrize("variant", SIZES)
def test_every_batch_has_all_levels(variant: str) -> None:
    for iteration in range(ITERATIONS):
        (levels,) = (values for name, values in training_draws(variant, iteration) if name == "randint")
        assert set(levels.tolist()) == set(range(1, LEVELS + 1))
