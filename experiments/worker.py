"""Jobs in a process of their own, one after another: train (or resume) one run, then evaluate it.

    python -m experiments.worker      (started by experiments/run.py)

Standard input holds a job a line, as JSON. Progress goes to standard output as JSON lines. When standard input closes,
there is no more to do, or the parent is gone: the worker then keeps a checkpoint and leaves, so that nothing is lost
and nothing runs on unseen.
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from cdrl import checkpoint, precision
from cdrl.errors import UserError
from cdrl.fast import Engine, choose
from cdrl.method import Method
from cdrl.trainer import train
from experiments import data, methods
from experiments.data import attributes
from experiments.data.points import PointBatches, PointSet
from experiments.evaluate import SCORED, Measurement, TrainedRun, evaluator
from experiments.files import read_json, write_json
from experiments.metrics import Protocol, Scorer
from experiments.provenance import device_name

_stop = threading.Event()


def main() -> int:
    """Do the jobs that `experiments.run` hands over, up to the first that fails; returns the process's exit code."""
    jobs: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    while (line := jobs.get()) is not None:
        code = _attempt(json.loads(line))
        if code:
            return code
        tell(over=True)
    return 0


def _attempt(job: dict[str, Any]) -> int:
    gc.collect()  # an earlier job's networks may hold the device's memory
    torch.compiler.reset()  # and its compiled code counts towards a limit
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    try:
        with _alone_in(folder), precision.products(job["config"]["method"].get("precision", "fp32")):
            return _do(job, folder)
    except UserError as error:
        tell(error=str(error))
        return 2
    except KeyboardInterrupt:
        return 130


def tell(**facts: Any) -> None:
    """One line of progress for the parent."""
    print(json.dumps(facts), flush=True)


def _do(job: dict[str, Any], folder: Path) -> int:
    config, device = job["config"], torch.device(job["device"])
    training = data.load_config(config["data"], "train")
    check_images(folder, training)
    method = None
    if config["method"]["kind"] not in methods.REFERENCES:
        method = _trained(job, folder, training, device)
        if method is None:
            return 130 if _stop.is_set() else 0
    held_out = data.load_config(config["data"], "test")
    for number, evaluation in enumerate(job["evaluations"]):
        run = TrainedRun(
            folder=folder,
            config=config,
            seed=job["seed"],
            device=device,
            method=method,
            train=training,
            test=held_out,
            protocol=Protocol.from_config(evaluation["settings"]["metrics"]),
            cache=Path(job["cache"]),
        )
        _evaluate(run, evaluation["settings"], Path(evaluation["folder"]), number, job["commit"])
    return 0


def check_images(folder: Path, training: data.ImageSet) -> None:
    """Raises `UserError` where the run in ``folder`` began on other images or labels than these; else notes which."""
    path = folder / "data.json"
    facts = {"name": training.name, "pixels": training.checksum, "labels": training.labels_checksum}
    if path.exists() and read_json(path) != facts:
        raise UserError(
            f"the images of {training.source} are not those that {folder} was trained on; bring them back, or train "
            "another run with runs=…"
        )
    write_json(path, facts)


def _check_protocols(job: dict[str, Any], training: data.ImageSet, device: torch.device) -> None:
    """Builds every scorer once before hours are spent on training: what is missing or does not fit is said now."""
    looks = [evaluation["settings"] for evaluation in job["evaluations"]]
    protocols = {json.dumps(settings["metrics"]) for settings in looks if settings["kind"] in SCORED}
    for protocol in sorted(protocols):
        Scorer(Protocol.from_config(json.loads(protocol)), training, Path(job["cache"]), device)


def _trained(job: dict[str, Any], folder: Path, training: data.ImageSet, device: torch.device) -> Method | None:
    """The run's method with its trained weights, or None when it diverged or was interrupted."""
    config, seed = job["config"], job["seed"]
    untrained = config["method"]["kind"] in methods.UNTRAINED
    iterations = 1 if untrained else planned_iterations(config, label_count(config, training))
    method = methods.build(
        config["method"],
        image_size=training.image_size,
        channels=training.channels,
        classes=label_count(config, training),
        seed=seed,
        iterations=iterations,
        device=device,
        engine=engine_for(config["method"], job["engine"], device, iterations),
    )
    status = folder / "status.json"
    if untrained:
        return method
    if status.exists():
        method.load_state(checkpoint.load(folder)[0])
        return method if read_json(status)["status"] == "finished" else None
    _check_protocols(job, training, device)
    write_json(folder / "config.json", {**config, "seed": seed, "iterations": iterations})
    outcome = _train(method, config, folder, training, iterations, seed, device)
    if outcome.status == "interrupted":
        return None
    cost = method.training_cost * config["method"]["batch_size"]
    facts = {
        "status": outcome.status,
        "iterations": outcome.iteration,
        "seconds": outcome.seconds,
        "commit": job["commit"],
        "device": device_name(str(device)),
        "grad_evals": round(outcome.iteration * cost),
    }
    write_json(status, facts)
    return method if outcome.status == "finished" else None


def _train(
    method: Method,
    config: dict[str, Any],
    folder: Path,
    training: data.ImageSet,
    iterations: int,
    seed: int,
    device: torch.device,
) -> Any:
    batch_size = config["method"]["batch_size"]
    batches = training_batches(training, config, seed, device)
    milestones = [max(1, round(share * iterations)) for share in config["scale"]["milestones"]]
    log = MetricsLog(folder / "metrics.jsonl")

    def report(facts: dict[str, Any]) -> None:
        log.append(facts)
        tell(iteration=facts["iteration"], iterations=iterations)

    def resume(iteration: int) -> None:
        log.truncate(iteration)
        tell(iteration=iteration, iterations=iterations)

    def keep(iteration: int) -> None:
        checkpoint.save(milestone_folder(folder, iteration), _averages(method), {"iteration": iteration})

    return train(
        method,
        batches.batch,
        batch_size=batch_size,
        iterations=iterations,
        on_report=report,
        report_every=max(1, math.ceil(iterations / config["scale"]["reports"])),
        folder=folder,
        milestones=milestones,
        on_milestone=keep,
        on_resume=resume,
        should_stop=_stop.is_set,
    )


def planned_iterations(config: dict[str, Any], classes: int) -> int:
    """The iterations that the budget pays for; at least one."""
    method = config["method"]
    probe = methods.build(
        method,
        image_size=config["data"]["image_size"],
        channels=config["data"]["channels"],
        classes=classes,
        seed=0,
        iterations=1,
        device=torch.device("meta"),
    )
    return max(1, int(config["budget"] // (probe.training_cost * method["batch_size"])))


def engine_for(method: dict[str, Any], mode: str, device: torch.device, iterations: int) -> Engine:
    """The engine of a method that trains for ``iterations``."""
    # K, whatever the kind of method calls it, is 0 for methods without chains.
    steps = int(method["chain"]["steps"] if "chain" in method else method.get("steps", 0))
    return choose(mode, device, iterations * steps, method.get("precision", "fp32"))


def label_count(config: dict[str, Any], training: data.ImageSet) -> int:
    """Number of labels C that a conditional network distinguishes, without the null label."""
    if config["data"]["concepts"]:
        return attributes.count(training, config["data"]["concepts"])
    return 2 if config["data"]["label_from"] else training.classes


def training_batches(
    training: data.ImageSet, config: dict[str, Any], seed: int, device: torch.device
) -> data.DeviceBatches | attributes.ConceptBatches | PointBatches:
    """The batches of a run: points, or images labelled by class, by one attribute, or by concepts."""
    if isinstance(training, PointSet):
        return PointBatches(training, config["method"]["batch_size"], seed, device)
    settings = config["data"]
    labels_as = None if settings["concepts"] else settings["label_from"]
    batches = data.DeviceBatches(
        training, config["method"]["batch_size"], seed, device, flip=settings["flip"], label_from=labels_as
    )
    return attributes.ConceptBatches(batches, settings["concepts"]) if settings["concepts"] else batches


def milestone_folder(folder: Path, iteration: int) -> Path:
    """Where the averaged weights of a milestone are."""
    return folder / "milestones" / f"{iteration:08d}"


def _averages(method: Method) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, learner in method.learners.items()
        for key, value in learner.ema.synchronised().state_dict().items()
    }


def _evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, number: int, commit: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    def progress(done: float, text: str) -> None:
        tell(evaluating=settings["kind"], number=number, done=done, text=text)
        if _stop.is_set():
            raise KeyboardInterrupt

    measurements: list[Measurement] = evaluator(settings["kind"])(run, settings, out, progress)
    seconds = time.monotonic() - begin
    made = {"commit": commit, "device": device_name(str(run.device))}
    facts = {"settings": settings, "measurements": measurements, "seconds": seconds, **made}
    write_json(out / "result.json", facts)


class MetricsLog:
    """``metrics.jsonl``: one line a report; after a resume the lines that will be made again are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, facts: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def truncate(self, iteration: int) -> None:
        """Keep the lines up to ``iteration``; a line cut short by a kill goes too."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["iteration"] <= iteration:
                    kept.append(line)
            except json.JSONDecodeError:
                break
        self.path.write_text("".join(f"{line}\n" for line in kept))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the run folder's lock; a second process that wants the same run is told so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is working on {folder}; wait for it or stop it") from None
        yield


def _receive(jobs: SimpleQueue[str | None]) -> None:
    with open(0, "rb", buffering=0, closefd=False) as lines:  # sys.stdin's lock would be missed when leaving early
        for line in lines:
            jobs.put(os.fsdecode(line).rstrip("\n"))
    _stop.set()
    jobs.put(None)


if __name__ == "__main__":
    sys.exit(main())
