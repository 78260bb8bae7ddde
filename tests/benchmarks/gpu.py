"""Everything a GPU is needed for, in three stages that start again where they stopped.

    python -m tests.benchmarks.gpu speed     parity of every fast path; times, memory and share of the matrix ceiling
    python -m tests.benchmarks.gpu train     table 1 at scale=mini: trains what is missing
    python -m tests.benchmarks.gpu score     the same experiment again: scores what is trained, and the report

``--device cpu --tiny`` rehearses the first stage anywhere. What stands in ``results/bench/gpu.json`` is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cdrl import fast
from cdrl.cooperative import Cooperative
from cdrl.fast import Engine
from tests import reference
from tests.benchmarks import cases

OUT = Path("results/bench/gpu.json")
BATCHES = (64, 256, 1024)


def seconds(act: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """The shortest of some rounds after one to warm up, the device waited for."""
    best = float("inf")
    for round_ in range(rounds + 1):
        _wait(device)
        begin = time.perf_counter()
        act()
        _wait(device)
        best = min(best, time.perf_counter() - begin) if round_ else best
    return best


def parity(engine: Engine, device: torch.device, tiny: bool) -> dict[str, float]:
    """Relative distances of parameters after two iterations, and of samples, from the plain reference."""
    size = cases.SIZES["nano" if tiny else "mini"]
    method, x0 = cases.build(size, engine=engine, device=device), cases.images(size, 16, device)
    assert isinstance(method, Cooperative)
    state = reference.state_of(method)
    for iteration in range(2):
        method.train_step(x0, None, iteration)
        reference.reference_step(state, x0, None, iteration)
    index = torch.arange(4, device=device)
    expected = reference.reference_sample(state, index, 0, size.shape)
    networks = (method.energy_net, state.energy.network)
    mine, plain = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks)
    return {
        "parameters": float((mine - plain).norm() / plain.norm()),
        "samples": float((method.sampler()(index, 0) - expected).norm() / expected.norm()),
    }


def chain_times(engine: Engine, device: torch.device, tiny: bool, precision: str) -> list[dict[str, Any]]:
    """Chains at every batch size: time, FLOP/s, and peak memory."""
    size, batches = (cases.SIZES["nano"], (4,)) if tiny else (cases.SIZES["paper"], BATCHES)
    method, steps, lines = cases.build(size, engine=engine, device=device), 2 if tiny else 15, []
    assert isinstance(method, Cooperative)
    work = cases.flops(cases.chain(method, cases.images(size, 1, device), 1)) if engine is fast.EAGER else 0
    for batch in batches:
        with contextlib.suppress(torch.cuda.OutOfMemoryError), precision_of(precision, device):
            _forget_peak(device)
            act = cases.chain(method, cases.images(size, batch, device), steps)
            spent = seconds(act, device)
            lines.append({"batch": batch, "steps": steps, "seconds": spent, "flops": work * batch * steps})
            lines[-1]["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return lines


def iteration_times(engine: Engine, device: torch.device, tiny: bool) -> dict[str, Any]:
    """A training iteration, with every synchronisation an error."""
    size, batch = (cases.SIZES["nano"], 4) if tiny else (cases.SIZES["paper"], 64)
    method, x0 = cases.build(size, engine=engine, device=device), cases.images(size, batch, device)
    method.train_step(x0, None, 0)
    with no_synchronisation(device):
        method.train_step(x0, None, 1)
    return {"batch": batch, "seconds": seconds(lambda: method.train_step(x0, None, 2), device)}


def rivals(device: torch.device, tiny: bool) -> dict[str, float]:
    """The chain as the plain reference, and as the authors' code when ``CDRL_RELEASED_REPO`` names a checkout."""
    size, batch, steps = (cases.SIZES["nano"], 4, 2) if tiny else (cases.SIZES["paper"], 64, 15)
    method, y = cases.build(size, device=device), cases.images(size, batch, device)
    assert isinstance(method, Cooperative)
    times = {"batch": batch, "steps": steps, "plain": seconds(cases.chain(method, y, steps, plain=True), device)}
    if checkout := os.environ.get("CDRL_RELEASED_REPO"):
        times["released"] = seconds(cases.released_chain(Path(checkout), size, y, steps), device)
    return times


@contextlib.contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products in "fp32", "tf32" or "bf16"."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = name != "fp32"
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
        yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@contextlib.contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def speed(device: torch.device, tiny: bool, out: Path) -> None:
    """The first stage."""
    parts: dict[str, Callable[[], Any]] = {
        "ceiling": lambda: {
            str(dtype).removeprefix("torch."): cases.ceiling(device, dtype, 256 if tiny else 8192)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "rivals": lambda: rivals(device, tiny),
    }
    modes = ["eager"] if device.type == "cpu" else ["eager", "compiled", "captured"]
    for mode in modes:
        engine = fast.engine(mode, device)
        parts[f"parity {mode}"] = lambda engine=engine: parity(engine, device, tiny)
        parts[f"iteration {mode}"] = lambda engine=engine: iteration_times(engine, device, tiny)
        for name in ("fp32", "tf32", "bf16"):
            parts[f"chain {mode} {name}"] = lambda engine=engine, name=name: chain_times(engine, device, tiny, name)
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for number, (name, part) in enumerate(parts.items(), start=1):
        if name in done:
            continue
        begin = time.perf_counter()
        try:
            done[name] = part()
        except Exception as error:  # one path that fails must not cost the others their GPU time
            done[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"[{number}/{len(parts)}] {name} ({time.perf_counter() - begin:.1f} s): {done[name]}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(done, indent=1) + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("speed", "train", "score"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: nano networks, a few images")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.stage == "speed":
        speed(torch.device(arguments.device), arguments.tiny, arguments.out)
        return 0
    scale = "nano" if arguments.tiny else "mini"
    command = [sys.executable, "-m", "experiments", "experiment=table1", f"scale={scale}"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
