"""Masks, the metrics of completions against hand-made ones, and known pixels that stay exactly as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import mask_from_picture
from experiments.evaluate import inpaint
from tests.experiments.evaluate.conftest import Brightness, Runs, quiet

INDEX = torch.arange(3)


def test_masks() -> None:
    assert inpaint.mask("half", 8, INDEX, 0)[0, 0, :, 0].tolist() == [True] * 4 + [False] * 4
    box = inpaint.mask("box", 8, INDEX, 0)[0, ..., 0]
    assert (~box).sum() == 16
    assert not box[2:6, 2:6].any()
    random = inpaint.mask("random", 32, INDEX, 0)
    assert random.mean() == pytest.approx(0.5, abs=0.03)
    assert not np.array_equal(random[0], random[1])
    np.testing.assert_array_equal(random[1:2], inpaint.mask("random", 32, INDEX[1:2], 0))


def test_mask_from_a_picture(tmp_path: Path) -> None:
    drawn = np.zeros((16, 16), np.uint8)
    drawn[:, 8:] = 255
    Image.fromarray(drawn).save(tmp_path / "mine.png")
    known = inpaint.mask(str(tmp_path / "mine.png"), 8, INDEX, 0)
    assert known[2, 5, :, 0].tolist() == [False] * 4 + [True] * 4


def test_a_mask_is_cropped_like_its_picture_and_must_have_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    drawn = np.full((40, 60), 255, np.uint8)
    drawn[:, 30:40] = 0
    Image.fromarray(drawn).save(path)
    for picture in ((60, 40), (600, 400), (301, 200)):  # 301 x 200 is 60 x 40 but for rounding
        known = mask_from_picture(path, picture, 8)
        assert known[3].tolist() == [True] * 4 + [False] * 2 + [True] * 2
    for picture in ((40, 60), (50, 50)):
        with pytest.raises(UserError, match="60x40 and does not fit over"):
            mask_from_picture(path, picture, 8)


def test_mask_that_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="half, box, random"):
        inpaint.mask(str(tmp_path / "none.png"), 8, INDEX, 0)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="not a readable image"):
        inpaint.mask(str(tmp_path / "text.png"), 8, INDEX, 0)


def test_measures_of_hand_made_completions() -> None:
    truth = np.full((1, 2, 2, 1), 100, np.uint8)
    known = np.array([True, True, False, False]).reshape(1, 2, 2, 1)
    completions = np.repeat(truth[:, None], 2, axis=1)
    completions[0, 1, 1] = 151  # the second completion is 51/127.5 = 0.4 off in all of the hole
    values = inpaint.measure(truth, known, completions, filling=np.full((2, 2, 1), 100 + 12.75))
    assert values["known_exact"] == 1.0
    assert values["hole_mse"] == pytest.approx(0.16 / 2)
    assert values["hole_mse_best"] == 0.0
    assert values["hole_mse_mean_image"] == pytest.approx(0.01)
    assert values["diversity"] == pytest.approx(0.4)
    completions[0, 0, 0, 0] = 99
    assert inpaint.measure(truth, known, completions, truth[0])["known_exact"] == 0.75


def test_known_pixels_stay_exact(make_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpaint, "build", lambda *arguments: Brightness())
    settings = {"masks": ["box", "random"], "images": 5, "completions": 2, "repeats": 1, "batch": 4}
    run = make_run()
    measurements = inpaint.evaluate(run, settings, tmp_path, quiet)
    by_name = {(m.mask, m.metric): m.value for m in measurements}
    # levels × steps × (1 + repeats), the last denoise once
    sampler = run.sampler()
    assert {m.grad_evals for m in measurements} == {2 * 6 * (2 + sampler.proposal_cost) + 1}
    assert {m.protocol for m in measurements} == {"inpaint"}
    assert by_name["box", "known_exact"] == by_name["random", "known_exact"] == 1.0
    assert by_name["box", "diversity"] > 0.0
    assert by_name["box", "hole_mse_best"] <= by_name["box", "hole_mse"]
    assert 0.0 <= by_name["random", "agreement"] <= 1.0
    assert np.load(tmp_path / "inpaint-box.npz")["completions"].shape == (5, 2, 8, 8, 1)


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        (["half", "/x/own.png"], ["half", "own"]),
        (["/x/a/m.png", "/x/b/m.png", "box"], ["a-m", "b-m", "box"]),
        (["/a/x/m.png", "/b/x/m.png"], ["a-x-m", "b-x-m"]),
        (["half", "x/half.png"], ["half", "x-half"]),
    ],
)
def test_every_mask_has_a_name_of_its_own(masks: list[str], names: list[str]) -> None:
    assert list(inpaint.mask_names(masks).values()) == names


def test_masks_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(UserError, match="same name; rename one"):
        inpaint.mask_names(["x/m.png", "x/m.bmp"])


def test_two_masks_of_one_name_are_measured_and_kept_apart(
    make_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inpaint, "build", lambda *arguments: Brightness())
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        drawn = np.zeros((8, 8), np.uint8)
        drawn[4 * number : 4 * number + 4] = 255
        Image.fromarray(drawn).save(tmp_path / folder / "m.png")
    masks = [str(tmp_path / folder / "m.png") for folder in "ab"]
    settings = {"masks": masks, "images": 2, "completions": 1, "repeats": 0, "batch": 4}
    measurements = inpaint.evaluate(make_run(), settings, tmp_path, quiet)
    assert {m.mask for m in measurements} == {"a-m", "b-m"}
    first, second = (np.load(tmp_path / f"inpaint-{name}.npz")["mask"] for name in ("a-m", "b-m"))
    assert not (first & second).any()
