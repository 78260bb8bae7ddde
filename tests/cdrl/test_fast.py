"""Every form of the hot loop gives the plain form's numbers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdrl import fast, langevin, randomness
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Chain, KnownPixels, Langevin, Refined
from cdrl.method import Batch
from tests.benchmarks.gpu.device import record_again
from tests.reference import EXACT

Build = Callable[..., Cooperative]
CPU = torch.device("cpu")
STEPS = 3


def a_chain(method: Cooperative, batch: int = 5, seed: int = 0) -> Chain:
    """A chain whose parts are all functions of ``seed``, its step size too."""
    device = method.device
    index = torch.arange(batch, device=device) + 10 * seed
    level = 1 + index % 6
    start, anchor = (
        randomness.normal(randomness.key(seed, name), index, (1, 8, 8), method.dtype) for name in ("start", "anchor")
    )
    net, settings = method.energy_net, Langevin(STEPS, 1e-2, step_multiplier=1.0 + 0.1 * seed)
    return Chain(
        energy=net.frozen(net.weights(), method.schedule.logsnr[level - 1]),
        start=start,
        anchor=anchor,
        constants=langevin.coefficients(method.schedule, level, settings),
        streams=randomness.keys(seed, "chain", count=STEPS, device=device),
        image_index=index,
    )


def replayed(recordings: list[int]) -> fast.Recorder:
    """`record_again`, counted."""

    def record(chain: Callable[[], Refined]) -> tuple[Callable[[], None], Refined]:
        recordings.append(1)
        return record_again(chain)

    return record


def test_functional_gradient_is_the_gradient(cooperative: Build) -> None:
    chain = a_chain(cooperative(dtype=torch.float64))
    stepper = functools.partial(langevin.step, gradient_of=fast._functional_gradient)
    torch.testing.assert_close(langevin.refine(chain, stepper).y, langevin.refine(chain).y, rtol=0, atol=EXACT)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_captured_chain_reads_new_inputs(cooperative: Build, pinned: bool) -> None:
    """One recording for each set of shapes; a replay sees the inputs, weights, step size and noise keys it is given."""
    method, recordings = cooperative(), []
    captured = fast.Captured(langevin.refine, replayed(recordings))
    results: list[Tensor] = []
    for seed in (1, 2):
        chain = a_chain(method, seed=seed)
        if pinned:
            chain = chain._replace(known=KnownPixels(torch.rand_like(chain.start) < 0.5, chain.anchor))
        results.append(captured(chain).y)
        assert torch.equal(results[-1], langevin.refine(chain).y)
        method.energy_net.stem.weight.data.mul_(1.5).add_(0.1)
    assert not torch.equal(*results)
    assert len(recordings) == 1
    captured(a_chain(method, batch=4))
    assert len(recordings) == 2


def test_an_engine_is_what_a_method_runs_on(cooperative: Build) -> None:
    """Training and sampling both go through it."""
    method, calls = cooperative(), []

    def refine(chain: Chain) -> Refined:
        calls.append(1)
        return langevin.refine(chain)

    method.engine = fast.Engine("counted", refine)
    method.train_step([Batch.whole(torch.zeros(2, 1, 8, 8))], 0)
    assert len(calls) == 1
    next(iter(method.sample(2, seed=0)))
    assert len(calls) == 1 + 6


def test_without_a_compiler_it_runs_eager(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fast.shutil, "which", lambda name: None)
    assert fast.engine("compiled", CPU) == fast.EAGER
    assert "running eager" in caplog.text


@pytest.mark.parametrize(("mode", "message"), [("warp", "choose one of"), ("captured", "engine=compiled")])
def test_impossible_engines_are_refused(mode: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fast.engine(mode, CPU)


@pytest.mark.slow
@pytest.mark.skipif("CDRL_TEST_COMPILED" not in os.environ, reason="compiles for minutes; set CDRL_TEST_COMPILED=1")
def test_compiled_chain_matches_eager(cooperative: Build) -> None:
    """The same in float64, and nothing is compiled again for another chain of the same shapes."""
    method, refine = cooperative(dtype=torch.float64), fast.engine("compiled", CPU).refine
    graphs = []
    for seed in (1, 2):
        chain = a_chain(method, seed=seed)
        torch.testing.assert_close(refine(chain).y, langevin.refine(chain).y, rtol=0, atol=EXACT)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["replayed", "compiled", "captured"])
def test_on_a_gpu_every_form_gives_the_eager_numbers(cooperative: Build, mode: str) -> None:
    """Several chains and shapes in turn, so that a graph that overwrote another's memory would show."""
    method = cooperative(device="cuda", dtype=torch.float64)
    refine = fast.engine(mode, method.device).refine
    for seed, batch in ((1, 5), (2, 3), (3, 5), (4, 3)):
        chain = a_chain(method, batch, seed)
        torch.testing.assert_close(refine(chain).y, langevin.refine(chain).y, rtol=0, atol=EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["eager", "replayed"])
def test_on_a_gpu_an_iteration_does_not_wait_for_the_device(cooperative: Build, mode: str) -> None:
    method = cooperative(device="cuda")
    method.engine = fast.engine(mode, method.device)
    images = torch.zeros(4, 1, 8, 8, device="cuda")
    method.train_step([Batch.whole(images)], 0)  # the first one records, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.train_step([Batch.whole(images)], 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
