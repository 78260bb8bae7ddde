"""Outside sets keep what they promise to keep, and scores are the energy network's own values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl.errors import UserError
from cdrl.sampler import Sampler
from experiments import data
from experiments.evaluate import TrainedRun, ood
from tests.experiments.evaluate.conftest import Runs, quiet
from tests.reference import EXACT

SETTINGS = {"outside": ["uniform", "shuffled"], "images": 40, "draws": 2, "batch": 16}


@pytest.fixture
def run(make_run: Runs) -> TrainedRun:
    return make_run()


@pytest.fixture
def sampler(run: TrainedRun) -> Sampler:
    """The run's, in float64."""
    sampler = run.sampler()
    sampler.energy_net.double()
    return sampler


def test_shuffled_keeps_each_images_pixels(run: TrainedRun) -> None:
    images = run.test.images
    shuffled = ood.outside("shuffled", images, 0)
    assert not np.array_equal(shuffled, images)
    flat = (len(images), -1)
    np.testing.assert_array_equal(np.sort(shuffled.reshape(flat)), np.sort(images.reshape(flat)))


def test_inverted_is_its_own_inverse(run: TrainedRun) -> None:
    twice = ood.outside("inverted", ood.outside("inverted", run.test.images, 0), 0)
    np.testing.assert_array_equal(twice, run.test.images)


def test_interpolations_are_means_of_two_different_images() -> None:
    images = np.array([0, 10, 30, 70, 150], np.uint8).reshape(5, 1, 1, 1)
    sums = {2 * int(value) for value in ood.outside("interp", images, 3).ravel()}
    pairs = {a + b for a in (0, 10, 30, 70, 150) for b in (0, 10, 30, 70, 150) if a != b}
    assert len(sums) == 5
    assert sums <= pairs


def test_uniform_noise_covers_all_values(run: TrainedRun) -> None:
    noise = ood.outside("uniform", np.zeros((500, 8, 8, 1), np.uint8), 0)
    assert noise.mean() == pytest.approx(127.5, abs=1.0)
    assert (noise.min(), noise.max()) == (0, 255)


def test_larger_images_shrink_by_squares_and_others_are_refused() -> None:
    large = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    small = ood._of_size(large, (4, 4, 1), "set")
    assert small[0, 0, 0, 0] == round((0 + 1 + 8 + 9) / 4)
    with pytest.raises(UserError, match="leave it out"):
        ood._of_size(large, (3, 3, 1), "set")


def test_lowest_level_scores_the_image_as_it_is(run: TrainedRun, sampler: Sampler) -> None:
    scores = ood.log_densities(sampler, run.test.images[:20], seed=0, draws=3, batch=7)
    schedule = sampler.schedule.to("cpu", torch.float64)
    x = data.to_float(run.test.images[:20]).double()
    expected = sampler.energy_net(schedule.a[1] * schedule.alpha[0] * x, schedule.logsnr[0].expand(20))
    np.testing.assert_allclose(scores[0], expected.detach().numpy(), rtol=EXACT)
    assert scores.shape == (schedule.levels, 20)


def test_scores_do_not_depend_on_the_batch(run: TrainedRun, sampler: Sampler) -> None:
    first, second = (ood.log_densities(sampler, run.test.images[:20], 0, 2, batch) for batch in (20, 6))
    np.testing.assert_allclose(first, second, rtol=EXACT)


def test_sets_that_are_not_at_hand_are_left_out(tmp_path: Path) -> None:
    assert data.at_hand(["celeba64", "digits"], str(tmp_path)) == ["digits"]


def test_every_level_of_every_set_is_measured(run: TrainedRun, tmp_path: Path) -> None:
    measurements = ood.evaluate(run, SETTINGS, tmp_path, quiet)
    assert len(measurements) == 2 * run.sampler().schedule.levels
    assert {(m.metric, m.dataset, m.protocol) for m in measurements} == {("auroc", "", "log-density")}
    assert [(m.against, m.level) for m in measurements] == [
        (name, level) for name in ("uniform", "shuffled") for level in range(run.sampler().schedule.levels)
    ]
    kept, examples = np.load(tmp_path / "ood.npz"), np.load(tmp_path / "examples.npz")
    assert set(kept) == set(examples) == {"inside", "uniform", "shuffled"}
    lowest = next(m for m in measurements if (m.level, m.against) == (0, "uniform"))
    ranks = np.mean(kept["inside"][0][:, None] > kept["uniform"][0][None, :])
    assert lowest.value == pytest.approx(ranks)
    assert torch.isfinite(torch.from_numpy(kept["inside"])).all()
