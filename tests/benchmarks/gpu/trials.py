"""One trial of the search: measure its pace, train for the seconds it is given, sample a little, score."""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import Any

import torch

from cdrl import precision, randomness, trainer
from cdrl.errors import UserError
from cdrl.method import Method
from experiments import configuration
from experiments.files import write_json
from experiments.metrics import Protocol, Scorer, build, to_pixels
from experiments.provenance import commit, device_name
from tests.benchmarks.gpu import budget, search
from tests.benchmarks.gpu.device import wait
from tests.benchmarks.gpu.session import METHODS, Session

SEED = randomness.key(0, "gpu/search")
"""Of a trial's weights, batches and samples: no table uses it."""
PROBE_SHARE = 0.15
"""Of a trial's seconds, spent on measuring its pace; at most `PROBE_MOST` seconds."""
PROBE_MOST = 1.5


def run(session: Session, seconds: float, count: int) -> None:
    """Search for every method with ``seconds`` of training each and ``count`` trials; writes ``chosen.json``."""
    spaces = search.TINY_SPACES if session.tiny else search.SPACES
    trials, log = Trials(session), search.Log(session.out / "search.csv")
    chosen = {}
    for method in METHODS:
        drawn = search.candidates(spaces[method], count)
        chosen[method] = search.halving(method, drawn, seconds, trials.attempt, log)
    write_json(session.chosen_file, chosen)
    print(f"chosen: {' '.join(session.chosen_overrides()) or 'the settings of the scale'}")


class Trials:
    """Trials on one device, one after another in this process, so that data and extractor are loaded once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.samples = 32 if session.tiny else 1000
        about = {"metrics.metrics": "[fd]", "metrics.reference_samples": 64 if session.tiny else 10_000}
        self.shortened = [f"{key}={value}" for key, value in about.items()]

    def attempt(self, method: str, settings: search.Settings, seconds: float) -> search.Result:
        """See `tests.benchmarks.gpu.search.Attempt`. A trial that fails or diverges scores infinitely badly."""
        begin = time.perf_counter()
        facts: dict[str, Any] = {"device": device_name(str(self.session.device)), "commit": commit()}
        if self.session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self.session.deadline.enforced():
            try:
                facts |= self._scored(method, settings, seconds)
            except (UserError, RuntimeError) as error:  # memory that runs out has several names
                facts |= {"score": math.inf, "status": str(error).splitlines()[0]}
        peak = torch.cuda.max_memory_allocated() if self.session.device.type == "cuda" else ""
        return {**facts, "peak_bytes": peak, "wall_seconds": round(time.perf_counter() - begin, 2)}

    def _scored(self, method: str, settings: search.Settings, seconds: float) -> dict[str, Any]:
        session = self.session
        config = session.run_config(method, *search.overrides(method, settings))
        probe = min(PROBE_MOST, PROBE_SHARE * seconds)
        found = budget.measure(config, seconds, probe, session.training, session.engine, session.device)
        prepared = budget.prepare(
            config, session.training, found["iterations"], session.engine, session.device, seed=SEED
        )
        with precision.products(config["method"]["precision"]):
            outcome = trainer.train(
                prepared.method,
                prepared.batches.batch,
                batch_size=prepared.batch_size,
                iterations=found["iterations"],
                on_report=lambda report: None,
                report_every=max(1, found["iterations"] // 5),
                folder=None,
            )
            wait(session.device)
            score = self._score(prepared.method) if outcome.status == "finished" else math.inf
        kept = {key: found[key] for key in ("iterations", "budget", "images_per_second")}
        return {
            "score": score if math.isfinite(score) else math.inf,
            "status": outcome.reason or outcome.status,
            "trained_seconds": round(outcome.seconds, 3),
            **kept,
        }

    def _score(self, method: Method) -> float:
        protocol, session = self._protocol, self.session
        scorer = Scorer(protocol, session.training, session.out / "cache", session.device, self._extractor)
        for images in method.sample(self.samples, SEED, batch_size=min(500, self.samples)):
            scorer.update(to_pixels(images, protocol.rounding))
        return scorer.result()[protocol.metrics[0]]

    @cached_property
    def _protocol(self) -> Protocol:
        config = self.session.overrides("table1", *self.shortened)
        return Protocol.from_config(configuration.plain(configuration.resolve(config).metrics)).headline

    @cached_property
    def _extractor(self) -> Any:
        return build(self._protocol.extractor, self.session.out / "cache", self.session.device)
