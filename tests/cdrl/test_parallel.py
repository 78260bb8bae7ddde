"""Shards and processes: real processes, and the same bits from any number of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.errors import UserError
from cdrl.parallel import Group

ROOT = Path(__file__).parents[2]
METHODS = ("cdrl", "conditional", "drl", "short_run", "ddpm")
ITERATIONS = 50

SCRIPT = """
import functools, hashlib, json, os, sys, time
from pathlib import Path
import torch
from baselines.ddpm import DDPMRecipe
from baselines.short_run import ShortRunRecipe
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.parallel import joined
from cdrl.recipe import CooperativeRecipe, ImageShape
from cdrl.trainer import train

wanted = json.loads(sys.argv[1])
torch.set_num_threads(1)
energy = dict(width=8, multipliers=(1, 2), blocks=1)
unet = dict(width=8, multipliers=(1, 2), blocks=1, dropout=0.2, attention_sizes=(4,))
optimisation = Optimisation(learning_rate=1e-3, warm_up=2, ema=0.9)
chain = Langevin(steps=2, step_variance=5e-3)
cooperative = dict(levels=3, chain=chain, energy=energy, optimisation=optimisation)
recipes = {
    "cdrl": lambda: CooperativeRecipe(initializer=unet, **cooperative),
    "conditional": lambda: CooperativeRecipe(initializer=unet, conditional=True, label_dropout=0.3, **cooperative),
    "drl": lambda: CooperativeRecipe(
        initializer=None, schedule="linear_beta", shared_noise=False, last_denoise="none", **cooperative),
    "short_run": lambda: ShortRunRecipe(steps=3, energy=energy, optimisation=optimisation),
    "ddpm": lambda: DDPMRecipe(network=unet, energy=energy, optimisation=optimisation),
}
size, rank = 24, int(os.environ.get("RANK", "0"))

def batches(iteration, first, count):
    if (rank, iteration) == (wanted.get("dies"), 5):
        os.kill(os.getpid(), 9)
    time.sleep(wanted.get("pause", 0.0))
    generator = torch.Generator().manual_seed(iteration)
    images = torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1
    labels = torch.randint(1, 4, (size,), generator=generator)
    rows = torch.arange(first, first + count)
    return Batch(images[rows], labels[rows], rows, count / size)

def resume(folder, iteration):
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("".join(f"{line}\\n" for line in lines if json.loads(line)["iteration"] <= iteration))

def report(folder, facts):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({name: value for name, value in facts.items() if name != "seconds"}) + "\\n")

with joined(shards=wanted["shards"], exact=wanted.get("exact", True)) as group:
    try:
        group.agree({"configuration": wanted.get("configurations", {}).get(str(rank), "its own")})
    except UserError as error:
        sys.exit(str(error))
    said = {}
    for name in wanted["methods"]:
        folder = Path(wanted["folder"]) / name
        method = recipes[name]().build(ImageShape(8, 1, 3), iterations=50)
        asked = iter(range(wanted.get("stop", 10**9)))
        outcome = train(method, batches, batch_size=size, iterations=50, report_every=10, folder=folder, group=group,
                        on_report=functools.partial(report, folder), should_stop=lambda: next(asked, None) is None,
                        on_resume=functools.partial(resume, folder),
                        checkpoint_seconds=wanted.get("checkpoint_seconds", 1e9))
        digest = hashlib.sha256()
        for key, value in sorted(method.state().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        said[name] = {"status": outcome.status, "iteration": outcome.iteration, "state": digest.hexdigest()}
    print(json.dumps(said))
"""


def begun(processes: int, folder: Path, methods: tuple[str, ...] = ("cdrl",), **wanted: Any) -> list[Any]:
    """The processes of one group, each with its two pipes."""
    for method in methods:
        (folder / method).mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = {"folder": str(folder), "methods": methods, "shards": 4, **wanted}
    where = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **where, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(wanted)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(group: list[Any]) -> list[dict[str, dict[str, Any]]]:
    """What each process said of each method at its end."""
    outputs = [process.communicate(timeout=200) for process in group]
    assert [process.returncode for process in group] == [0] * len(group), outputs
    return [json.loads(out) for out, _ in outputs]


def trained(processes: int, folder: Path, methods: tuple[str, ...] = ("cdrl",), **wanted: Any) -> dict[str, str]:
    """Hashes of every method's state and reports; those of the state are every process's."""
    first, *others = ended(begun(processes, folder, methods, **wanted))
    assert all(other == first for other in others)
    assert {one["iteration"] for one in first.values()} == {ITERATIONS}
    return {name: one["state"] + (folder / name / "metrics.jsonl").read_text() for name, one in first.items()}


def test_two_processes_end_with_the_bits_of_one(tmp_path: Path) -> None:
    """Weights, averages, Adam's moments and spectral vectors after 50 iterations, with dropout on; and the reports."""
    alone, shared = (trained(n, tmp_path / str(n), METHODS) for n in (1, 2))
    assert alone.keys() == set(METHODS)
    assert alone == shared


@pytest.mark.slow
@pytest.mark.parametrize("shards", [4, 8])
def test_three_and_four_processes_too(shards: int, tmp_path: Path) -> None:
    """Three have unequal numbers of shards."""
    alone, *shared = (trained(n, tmp_path / str(n), METHODS, shards=shards) for n in (1, 2, 3, 4))
    assert all(other == alone for other in shared)


def test_the_number_of_shards_is_part_of_a_run(tmp_path: Path) -> None:
    """Their sums are added in another order, and kernels round by the size of a batch."""
    assert trained(1, tmp_path / "2", shards=2) != trained(1, tmp_path / "3", shards=3)


def test_an_inexact_sum_is_near(tmp_path: Path) -> None:
    """All processes still end alike; three add in an order of their own."""
    trained(2, tmp_path / "two", exact=False)
    assert trained(1, tmp_path / "one") == trained(1, tmp_path / "one more", exact=False)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """The first process decides when to stop, and keeps the checkpoint."""
    whole = trained(1, tmp_path / "whole")
    said = [one["cdrl"] for one in ended(begun(2, tmp_path / "cut", stop=13))]
    assert {(one["status"], one["iteration"]) for one in said} == {("interrupted", 13)}
    assert {one["cdrl"]["iteration"] for one in ended(begun(3, tmp_path / "cut", stop=20))} == {33}
    assert trained(1, tmp_path / "cut") == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(rank: int, tmp_path: Path) -> None:
    group = begun(2, tmp_path / "cut", dies=rank, checkpoint_seconds=0.0)
    begin = time.monotonic()
    outputs = [process.communicate(timeout=60) for process in group]
    assert time.monotonic() - begin < 45
    assert group[rank].returncode == -signal.SIGKILL
    assert group[1 - rank].returncode not in (0, None), outputs
    assert trained(2, tmp_path / "cut") == trained(1, tmp_path / "whole")


def test_a_process_out_of_step_is_told_so(tmp_path: Path) -> None:
    group = begun(2, tmp_path, configurations={"1": "another"})
    messages = [process.communicate(timeout=60)[1] for process in group]
    assert all(process.returncode == 1 for process in group)
    for message in messages:
        assert "process 1 of 2 is out of step: its configuration is another, the first process's its own" in message


def test_ctrl_c_reaches_all_and_the_first_decides(tmp_path: Path) -> None:
    """A terminal sends it to every process."""
    group = begun(2, tmp_path, pause=0.05)
    while not (tmp_path / "cdrl" / "metrics.jsonl").exists():
        time.sleep(0.05)
        assert all(process.poll() is None for process in group)
    for process in reversed(group):
        process.send_signal(signal.SIGINT)
    said = [one["cdrl"] for one in ended(group)]
    assert {one["status"] for one in said} == {"interrupted"}
    assert len({one["iteration"] for one in said}) == 1
    assert said[0]["iteration"] < ITERATIONS


def test_shares_are_contiguous_and_cover_the_batch() -> None:
    for size, shards in ((1, 4), (2, 4), (3, 8), (4, 4), (5, 7)):
        shares = [list(Group(rank, size, shards).share()) for rank in range(size)]
        assert list(itertools.chain(*shares)) == list(range(shards))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_shards_are_refused() -> None:
    with pytest.raises(UserError, match="3 processes cannot share 2 shards of a batch; take fewer processes"):
        Group(0, 3, 2)


def test_one_process_adds_nothing() -> None:
    vector = torch.randn(10)
    assert Group(shards=4).total([vector]) is vector


def test_the_sum_is_that_of_the_shards_in_their_order(tmp_path: Path) -> None:
    """Numbers of very different size, lengths that no number of processes divides, two processes with three shards."""
    script = """
import sys, torch
from cdrl.parallel import joined
torch.manual_seed(0)
shards = [torch.randn(17) * 10.0 ** torch.randint(-3, 4, (17,)) for _ in range(3)]
with joined(shards=3) as group:
    mine = [shards[number].clone() for number in group.share()]
    if group.first:
        total = mine[0].clone()
        for part in mine[1:]:
            total += part
        mine = [total]
    expected = (shards[0] + shards[1]) + shards[2]
    assert torch.equal(group.total(mine), expected), group.rank
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    group = [
        subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **where, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(60) for process in group] == [0, 0]
