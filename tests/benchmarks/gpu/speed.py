"""Stage "speed": parity of every fast path with the reference, then times, memory and share of the matrix ceiling.

    ceiling                     FLOP/s of a large matrix product in every precision
    parity-<engine>             distance from the plain reference: chains, gradients, samples
    chain-<engine>-<precision>  chains by batch size: time, FLOP/s, share of the ceiling, peak memory
    rivals-…                    chain and iteration as the plain reference, and the authors' chain (CDRL_RELEASED_REPO)
    iteration-<engine>-…        a training iteration, with every synchronisation an error
    algorithms-…                the same with cuDNN trying its algorithms out first
    sampling-<engine>-…         whole samples: CDRL at K = 15, 8, 5, 3 and DRL at K = 30

Each is a JSON file in ``<out>/speed/``; ``speed.csv`` gathers them. Precisions are those of `cdrl.precision`. What has
to be compiled comes last, and can be left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Chain, Refined
from cdrl.learner import Optimisation
from cdrl.precision import PRECISIONS, products
from experiments.provenance import device_name
from tests import reference
from tests.benchmarks import cases
from tests.benchmarks.gpu.device import engines, forget, measured, no_synchronisation
from tests.benchmarks.gpu.parts import Parts

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        size: of the networks that are timed, and K.
        exact_size: of the networks whose numbers are compared.
        batches: of the chains; compiled forms take ``batch`` alone, one compilation each.
        batch: of an iteration, and of sampling.
        rival_batch: of what the plain reference and the authors' code do.
        sampling_steps: CDRL's K in sampling.
        square: rows and columns of the matrices whose product is the ceiling.
    """

    size: cases.Size
    exact_size: cases.Size
    batches: tuple[int, ...]
    batch: int
    rival_batch: int
    sampling_steps: tuple[int, ...]
    square: int


FULL = Work(replace(cases.SIZES["paper"], steps=15), cases.SIZES["mini"], (64, 256, 1024), 256, 64, (15, 8, 5, 3), 8192)
TINY = Work(replace(cases.SIZES["nano"], steps=2), cases.SIZES["nano"], (2, 4), 4, 4, (2, 1), 256)

EXACT = Optimisation(learning_rate=1e-3, warm_up=1)
"""While numbers are compared: steps large enough for a wrong one to show in the next iteration."""


def run(parts: Parts, device: torch.device, tiny: bool, light: bool = False) -> pd.DataFrame:
    """Do what is missing, ``light`` without what has to be compiled, then write and return the table."""
    work = TINY if tiny else FULL
    where = {"device": device_name(str(device)), "torch": torch.__version__}
    ceiling = parts.do("ceiling", lambda: {**ceilings(work, device), **where})
    if ceiling["device"] != where["device"]:
        raise UserError(f"{parts.folder} holds times of {ceiling['device']}; give this {where['device']} another --out")
    for name, act in plan(work, device, ceiling, light).items():
        forget()
        parts.attempt(name, partial(_with, act, where))
    return gather(parts.folder)


def plan(work: Work, device: torch.device, ceiling: dict[str, Any], light: bool) -> dict[str, Callable[[], Lines]]:
    """The parts by name, the most wanted first, and what has to be compiled last or, if ``light``, not at all."""
    modes = list(engines(device))
    ready = [mode for mode in modes if mode in ("eager", "replayed")]
    acts: dict[str, Callable[[], Lines]] = {}

    def add(kind: str, act: Callable[..., Any], chosen: Sequence[str], precisions: Sequence[str], *rest: Any) -> None:
        for precision in precisions:
            for mode in chosen:
                acts[f"{kind}-{mode}-{precision}"] = partial(act, work, mode, precision, device, *rest)

    def add_parity(chosen: Sequence[str]) -> None:
        for mode in chosen:
            acts[f"parity-{mode}"] = partial(parity, work, mode, device)

    add_parity(ready)
    add("chain", chains, ["eager"], PRECISIONS, ceiling)
    acts["rivals-chain"] = partial(rival_chains, work, device)
    if checkout := os.environ.get("CDRL_RELEASED_REPO"):
        acts["rivals-released"] = partial(released_chains, work, Path(checkout), device)
    acts["rivals-iteration"] = partial(rival_iterations, work, device)
    add("iteration", iteration, ready, ("tf32", "bf16", "fp32"))
    add("algorithms", algorithms, ["eager"], ("tf32", "bf16"))
    add("chain", chains, ["replayed"], ("bf16", "tf32", "fp32"), ceiling)
    add("sampling", sampling, ready, ("bf16", "tf32"))

    heavy = [] if light else [mode for mode in modes if mode not in ready]
    add_parity(heavy)
    add("iteration", iteration, heavy, ("bf16", "tf32"))
    add("chain", chains, heavy, ("bf16", "tf32"), ceiling)
    add("sampling", sampling, heavy, ("bf16",))
    return acts


def ceilings(work: Work, device: torch.device) -> dict[str, float]:
    """FLOP/s of a matrix product by precision."""
    found = {}
    for name in PRECISIONS:
        with products(name):
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            found[name] = cases.ceiling(device, dtype, work.square)
    return found


def parity(work: Work, mode: str, device: torch.device) -> Lines:
    """Relative distances from the plain reference in fp32, in two iterations of training and of samples after them.

    The first chain agrees to rounding. Gradients are small differences of positive and negative images' ones, and Adam
    makes whole steps of what rounding leaves of vanishing ones: all that comes later agrees to about 1e-3.
    """
    size = work.exact_size
    with products("fp32"):
        method, x0 = _cooperative(size, mode, device, optimisation=EXACT), cases.images(size, 16, device)
        state, refined, distances = reference.state_of(method), _remembered_chains(method), {}
        for number in range(2):
            method.train_step(x0, None, number)
            expected = reference.reference_step(state, x0, None, number)
            distances[f"chain_{number}"] = reference.distance([refined[-1]], [expected["refined"]])
            for name, learner in method.learners.items():
                gradients = [p.grad for p in learner.parameters]
                distances[f"{name}_{number}"] = reference.distance(gradients, expected[f"{name}_gradients"])
        index = torch.arange(4, device=device)
        plain = reference.reference_sample(state, index, 0, size.shape)
        return [{**distances, "samples": reference.distance([method.sampler()(index, 0)], [plain])}]


def _remembered_chains(method: Cooperative) -> list[Tensor]:
    """The ends of the chains that ``method`` walks from now on, as it walks them."""
    refine, ends = method.engine.refine, []

    def remembering(chain: Chain) -> Refined:
        result = refine(chain)
        ends.append(result.y)
        return result

    method.engine = replace(method.engine, refine=remembering)
    return ends


def chains(work: Work, mode: str, precision: str, device: torch.device, ceiling: dict[str, float]) -> Lines:
    """Chains by batch size; the line of a batch that does not fit into memory says so."""
    steps = work.size.steps
    flops = steps * cases.flops(cases.chain(_cooperative(work.size, "eager", device), _images(work, 1, device), 1))
    batches = work.batches if mode in ("eager", "replayed") else (work.batch,)
    method, lines = _cooperative(work.size, mode, device, precision), []
    for batch in batches:
        line: dict[str, Any] = {"batch": batch, "steps": steps, "flops": flops * batch}
        try:
            with products(precision):
                line |= measured(cases.chain(method, _images(work, batch, device), steps), device)
            line["ceiling_share"] = line["flops"] / line["seconds"] / ceiling[precision]
        except RuntimeError as error:  # memory that runs out while a graph is recorded is no OutOfMemoryError
            line["error"] = f"{type(error).__name__}: {error}"
        lines.append(line)
    return lines


def iteration(work: Work, mode: str, precision: str, device: torch.device) -> Lines:
    """A training iteration, what made the host wait for the device in it (nothing, one hopes), and the paper's run.

    ``hours_for_400000`` is extrapolated from one iteration; the paper's run has 400,000 of 256 images.
    """
    method, x0 = _cooperative(work.size, mode, device, precision), _images(work, work.batch, device)
    with products(precision):
        method.train_step(x0, None, 0)
        waits = "none"
        try:
            with no_synchronisation(device):
                method.train_step(x0, None, 1)
        except RuntimeError as error:
            waits = str(error)
        times = measured(lambda: method.train_step(x0, None, 2), device)
        hours = times["seconds"] * 400_000 / 3600
        return [{"batch": work.batch, "synchronisations": waits, **times, "hours_for_400000": hours}]


def algorithms(work: Work, mode: str, precision: str, device: torch.device) -> Lines:
    """`iteration` with cuDNN trying out its algorithms for every shape first; "first_seconds" holds what that takes."""
    torch.backends.cudnn.benchmark = True
    try:
        return iteration(work, mode, precision, device)
    finally:
        torch.backends.cudnn.benchmark = False


def sampling(work: Work, mode: str, precision: str, device: torch.device) -> Lines:
    """Whole samples; ``minutes_for_50000`` is extrapolated from one batch."""
    lines = []
    for name, steps in (*(("cdrl", k) for k in work.sampling_steps), ("drl", 2 * work.size.steps)):
        method = cases.build(work.size, name, engines(device, precision)[mode](), device)
        assert isinstance(method, Cooperative)
        sampler = replace(method.sampler(), chain=replace(method.settings.chain, steps=steps))
        index = torch.arange(work.batch)
        with products(precision):
            times = measured(partial(sampler, index, 0), device, rounds=1)
        extrapolated = times["seconds"] / work.batch * 50_000 / 60
        lines.append({"method": name, "steps": steps, "batch": work.batch, **times, "minutes_for_50000": extrapolated})
    return lines


def rival_chains(work: Work, device: torch.device) -> Lines:
    """The chain as the plain reference, and here."""
    method, y = _cooperative(work.size, "eager", device), _images(work, work.rival_batch, device)
    acts = {
        "plain": cases.chain(method, y, work.size.steps, plain=True),
        "eager": cases.chain(method, y, work.size.steps),
    }
    return _by_precision(work, acts, device)


def released_chains(work: Work, checkout: Path, device: torch.device) -> Lines:
    """The chain over the authors' network, from a checkout of their repository."""
    y = _images(work, work.rival_batch, device)
    return _by_precision(work, {"released": cases.released_chain(checkout, work.size, y, work.size.steps)}, device)


def rival_iterations(work: Work, device: torch.device) -> Lines:
    """A training iteration as the plain reference, and here."""
    method, x0 = _cooperative(work.size, "eager", device), _images(work, work.rival_batch, device)
    state = reference.state_of(method)
    acts = {
        "plain": lambda: reference.reference_step(state, x0, None, 1),
        "eager": lambda: method.train_step(x0, None, 1),
    }
    return _by_precision(work, acts, device)


def _by_precision(work: Work, acts: dict[str, Callable[[], Any]], device: torch.device) -> Lines:
    lines = []
    for precision in ("fp32", "tf32"):
        for variant, act in acts.items():
            with products(precision):
                line = {"variant": variant, "precision": precision, "batch": work.rival_batch}
                lines.append({**line, **measured(act, device, rounds=1)})
    return lines


def gather(folder: Path) -> pd.DataFrame:
    """All finished parts as one table, written to ``speed.csv`` beside their folder; also the failed ones."""
    rows: Lines = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        rows += [{"part": path.stem, **line} for line in (found if isinstance(found, list) else [found])]
    table = pd.DataFrame(rows)
    table.to_csv(folder.parent / "speed.csv", index=False, float_format="%.6g")
    return table


def _with(act: Callable[[], Lines], where: dict[str, str]) -> Lines:
    return [{**line, **where} for line in act()]


def _cooperative(
    size: cases.Size,
    mode: str,
    device: torch.device,
    precision: str = "fp32",
    optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
) -> Cooperative:
    method = cases.build(size, engine=engines(device, precision)[mode](), device=device, optimisation=optimisation)
    assert isinstance(method, Cooperative)
    return method


def _images(work: Work, batch: int, device: torch.device) -> torch.Tensor:
    return cases.images(work.size, batch, device)
