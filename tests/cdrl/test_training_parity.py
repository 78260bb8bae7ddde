"""Training beside the authors' own loop: both in float64, from the same weights, with the same draws.

With ``CDRL_RELEASED_REPO`` naming a checkout of the authors' release, its `train()` runs five iterations here (see
`tests.cdrl.released_training`), and all that an iteration computes and changes must be ours; ``CDRL_RELEASED_WRITE=1``
writes ``training_parity_golden.json`` anew. Without a checkout our iterations must give the numbers in that file, which
are the release's.

Networks are small; else the settings are the released ones (`cdrl.released.settings`, `cdrl.released.optimisation`) but
for higher learning rates and a shorter warm-up. Every batch has all six levels; both clips are active.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl import langevin, released
from cdrl.cooperative import Cooperative
from cdrl.fast import Engine
from cdrl.langevin import Chain, Refined
from cdrl.learner import Learner
from cdrl.method import Batch
from cdrl.networks import EnergyNet, Initializer
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
EXACT, BY_ADAM, ELSEWHERE = 1e-10, 1e-9, 10.0
"""How far a quantity may be from the release's in units of its largest value; how far what Adam made, in units of its
norm: Adam divides a gradient by its own size, so where the true one is next to zero (a bias before a normalisation of
one channel) rounding alone decides the update. Stored numbers may be ten times as far, where another processor rounds.
"""


# --- Our iterations, observed -----------------------------------------------------------------------------------------


def trained(variant: str, folder: Path) -> list[Record]:
    """Our training steps on the same batches; one record an iteration."""
    layouts = {name: LAYOUTS[variant]["layout"][name] for name in ("pi", "p")}
    with float64():
        energy_net, initializer = released.load(released_file(folder / "start.pth.tar", layouts), "live")
    method = Observed(energy_net.requires_grad_(True), initializer.requires_grad_(True))
    records, after = [], method.parts()
    for iteration in range(ITERATIONS):
        before = after
        method.train_step([Batch.whole(*batch(variant, iteration))], iteration)
        after = method.parts()
        records.append(method.seen | record_of(before, after, method.gradients))
    return records


class Observed(Cooperative):
    """CDRL as released; remembers what goes through its engine, what is lost, and the gradients before the clip."""

    def __init__(self, energy_net: EnergyNet, initializer: Initializer) -> None:
        energy, other = (
            replace(settings, learning_rate=RATES[name], warm_up=WARM_UP)
            for name, settings in zip(RATES, released.optimisation(), strict=True)
        )
        engine = Engine("observed", self._refine, self._prepare)
        super().__init__(energy_net, initializer, released.settings(), energy, other, seed=SEED, engine=engine)
        self.learners = {name: ObservedLearner(part.network, part.settings) for name, part in self.learners.items()}
        self.seen: Record = {}

    @property
    def gradients(self) -> Record:
        return {name: part.seen for name, part in self.learners.items() if isinstance(part, ObservedLearner)}

    def parts(self) -> dict[str, Record]:
        """Parameters, averages and spectral vectors as they are now."""
        networks = [learner.network for learner in self.learners.values()]
        averages = [learner.ema.average for learner in self.learners.values()]
        return {"live": vectors(*networks), "average": vectors(*averages)}

    def losses(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        losses = super().losses(batch, iteration)
        self.seen |= {f"{name} loss": loss.detach() for name, loss in losses.items()}
        return losses

    def _refine(self, chain: Chain) -> Refined:
        refined = langevin.refine(chain)
        self.seen |= {"x_t": chain.anchor, "proposal": chain.start.detach(), "refined": refined.y}
        return refined

    def _prepare(self, function: Any) -> Any:
        def observed(images: Tensor, *arguments: Any) -> Tensor:
            values = function(images, *arguments)
            self.seen |= {"positive": images[:BATCH].detach(), "energies": values.detach().reshape(2, BATCH)}
            return values

        return observed if function is energies else function


class ObservedLearner(Learner):
    def descend(self, iteration: int, iterations: int) -> Tensor:
        self.seen = self.gradient()
        return super().descend(iteration, iterations)


# --- Comparison -------------------------------------------------------------------------------------------------------


def by_adam(name: str) -> bool:
    return name.endswith(("update", "average"))


def limit(name: str) -> float:
    return BY_ADAM if by_adam(name) else EXACT


def distance(name: str, mine: Tensor, other: Tensor) -> float:
    """In the units of `limit`; absolute where the other is zero."""
    order = 2.0 if by_adam(name) else torch.inf
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
        expected = authors.train(tmp_path)
    mine = trained(variant, tmp_path)
    for iteration, (ours, other) in enumerate(zip(mine, expected, strict=True), start=1):
        assert ours.keys() == other.keys()
        found = {name: distance(name, ours[name], other[name]) for name in other}
        print(f"{variant}, iteration {iteration}: " + ", ".join(f"{name} {d:.0e}" for name, d in found.items()))
        assert not {name: d for name, d in found.items() if not d < limit(name)}, f"iteration {iteration}"
        for network in ("energy", "initializer"):
            assert other[f"{network} gradient"].norm() > 1.5, "a clip that does nothing compares nothing"

    stored = [{name: fingerprint(values) for name, values in record.items()} for record in expected]
    if WRITE:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {variant: stored}) + "\n")
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
            allowed = ELSEWHERE * limit(name) * expected[0]
            assert difference <= allowed, f"iteration {iteration + 1}: {name} differs by {difference:.1e}"


@pytest.mark.parametrize("variant", SIZES)
def test_every_batch_has_all_levels(variant: str) -> None:
    for iteration in range(ITERATIONS):
        levels = next(values for name, values in training_draws(variant, iteration) if name == "randint")
        assert set(levels.tolist()) == set(range(1, LEVELS + 1))
