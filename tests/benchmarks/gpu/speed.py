"""Parity of every fast path with the reference, then times, memory and share of the matrix ceiling.

    ceiling                     FLOP/s of a large matrix product in every precision
    parity-<engine>             distance from the plain reference: chains, gradients, samples
    chain-<engine>-<precision>  chains by batch size: time, FLOP/s, share of the ceiling, peak memory
    rivals-…                    chain and iteration as the plain reference, and the authors' chain (CDRL_RELEASED_REPO)
    iteration-<engine>-…        a training iteration, with every synchronisation an error
    algorithms-…                the same with cuDNN trying its algorithms out first
    sampling-<engine>-…         whole samples: CDRL at K = 15, 8, 5, 3 and DRL at K = 30

Each is a JSON file, and one that is there is not done again. Precisions are those of `cdrl.precision`. What has to be
compiled comes last, and can be left out.
"""

from __future__ import annotations

import json
import os
import time
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
from cdrl.method import Batch
from cdrl.precision import PRECISIONS, products
from experiments.files import read_json, write_json
from experiments.runs.machine import device_name, resolve_device
from tests import reference
from tests.benchmarks import cases
from tests.benchmarks.gpu.device import engines, forget, measured, no_synchronisation

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


def run(folder: Path, device: torch.device, *, tiny: bool = False, light: bool = False) -> pd.DataFrame:
    """Do the parts that ``folder`` lacks, ``light`` without what has to be compiled, and gather all in ``speed.csv``.

    Raises:
        UserError: there is no such device, or the folder holds times of another one.
    """
    work = TINY if tiny else FULL
    where = {"device": device_name(resolve_device(str(device))), "torch": torch.__version__}
    ceiling = part(folder, "ceiling", lambda: {**ceilings(work, device), **where})
    if ceiling["device"] != where["device"]:
        raise UserError(f"{folder} holds times of {ceiling['device']}; give this {where['device']} another --out")
    for name, act in plan(work, device, ceiling, light).items():
        forget()
        part(folder, name, partial(_attempt, act, where))
    return gather(folder)


def part(folder: Path, name: str, act: Callable[[], Any]) -> Any:
    """What ``act`` returns (anything JSON can hold), now or in an earlier call."""
    path = folder / f"{name}.json"
    if path.exists():
        return read_json(path)
    begin = time.monotonic()
    value = act()
    write_json(path, value)
    print(f"[{time.monotonic() - begin:6.1f} s] {name}: {json.dumps(value):.300}", flush=True)
    return value


def _attempt(act: Callable[[], Lines], where: dict[str, str]) -> Lines:
    """A part that fails is a line that says so: it must not cost the others their time."""
    try:
        lines = act()
    except Exception as error:
        lines = [{"error": f"{type(error).__name__}: {error}"}]
    return [{**line, **where} for line in lines]


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
    flops = {}
    for name in PRECISIONS:
        with products(name):
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            flops[name] = cases.ceiling(device, dtype, work.square)
    return flops


def parity(work: Work, mode: str, device: torch.device) -> Lines:
    """Relative distances from the plain reference, in two iterations of training and of samples after them.

    A line per type. In float64 all agree to `tests.reference.EXACT`, whatever the device. In float32 the first chain
    agrees to rounding; gradients are small differences of positive and negative images' ones, and Adam makes whole
    steps of what rounding leaves of vanishing ones, so all that comes later is farther.
    """
    size, lines = work.exact_size, []
    for dtype in (torch.float64, torch.float32):
        with products("fp32"):
            engine = engines(device)[mode]()
            method = cases.build(size, engine=engine, device=device, optimisation=EXACT, dtype=dtype)
            assert isinstance(method, Cooperative)
            x0 = cases.images(size, 16, device).to(dtype)
            state, refined = reference.state_of(method), _remembered_chains(method)
            line: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
            for number in range(2):
                method.train_step([Batch.whole(x0)], number)
                expected = reference.reference_step(state, x0, None, number)
                line[f"chain_{number}"] = reference.distance([refined[-1]], [expected["refined"]])
                for name, learner in method.learners.items():
                    gradients = [p.grad for p in learner.parameters]
                    line[f"{name}_{number}"] = reference.distance(gradients, expected[f"{name}_gradients"])
            index = torch.arange(4, device=device)
            plain = reference.reference_sample(state, index, 0, size.shape)
            lines.append({**line, "samples": reference.distance([method.sampler()(index, 0)], [plain])})
    return lines


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
        method.train_step([Batch.whole(x0)], 0)
        waits = "none"
        try:
            with no_synchronisation(device):
                method.train_step([Batch.whole(x0)], 1)
        except RuntimeError as error:
            waits = str(error)
        times = measured(lambda: method.train_step([Batch.whole(x0)], 2), device)
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
        "eager": lambda: method.train_step([Batch.whole(x0)], 1),
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
    """All finished parts as one table, written to ``speed.csv`` in their folder; also the failed ones."""
    rows: Lines = []
    for path in sorted(folder.glob("*.json")):
        lines = read_json(path)
        rows += [{"part": path.stem, **line} for line in (lines if isinstance(lines, list) else [lines])]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "speed.csv", index=False, float_format="%.6g")
    return table


def _cooperative(size: cases.Size, mode: str, device: torch.device, precision: str = "fp32") -> Cooperative:
    method = cases.build(size, engine=engines(device, precision)[mode](), device=device)
    assert isinstance(method, Cooperative)
    return method


def _images(work: Work, batch: int, device: torch.device) -> Tensor:
    return cases.images(work.size, batch, device)
