"""Sample quality: guidance is refused where there is nothing to guide towards."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.evaluate import samples
from tests.experiments.evaluate.conftest import Runs, quiet


@pytest.mark.parametrize(("classes", "weight", "words"), [(0, 0.7, "trained without"), (10, -1.0, "0 or more")])
def test_guidance_that_leads_nowhere_is_refused(
    make_run: Runs, tmp_path: Path, classes: int, weight: float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        samples.evaluate(make_run(classes), {"samples": 4, "batch": 4, "guidance": weight}, tmp_path, quiet)


def test_guidance_towards_classes_that_were_learned(make_run: Runs, tmp_path: Path) -> None:
    (found,) = samples.evaluate(make_run(10), {"samples": 4, "batch": 4, "guidance": 0.7}, tmp_path, quiet)
    assert found["grad_evals"] == 2 * make_run(10).sampler().gradient_evaluations
