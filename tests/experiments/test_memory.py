"""Memory: what is counted on tensors without contents is what a process really takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.method import Batch
from cdrl.recipe import CooperativeRecipe, ImageShape, Recipe
from experiments import configuration, estimate, memory, methods
from experiments.configuration import plain
from experiments.plan import make_plan

SHAPE = ImageShape(16, 3)
SMALL = CooperativeRecipe(
    energy={"width": 32, "multipliers": (1, 2), "blocks": 1},
    initializer={"width": 32, "multipliers": (1, 1), "blocks": 1, "attention_sizes": ()},
    chain=Langevin(steps=3),
)


def allocated(recipe: Recipe, images: int) -> int:
    """The most bytes of PyTorch's allocator in an iteration, the second, beside what lives between two."""
    method = recipe.build(SHAPE)
    batch = Batch.whole(torch.zeros(images, SHAPE.channels, SHAPE.size, SHAPE.size))
    method.train_step([batch], 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as observed:
        method.train_step([batch], 1)
    now = height = 0
    for event in observed.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            height = max(height, now)
    return height


@pytest.mark.parametrize("images", [4, 16])
def test_what_is_counted_is_what_is_allocated(images: int) -> None:
    footprint = memory.footprint_of(SMALL, SHAPE)
    assert footprint.chain is not None
    counted = max(line.at(images) for line in (footprint.chain, footprint.learning))
    assert counted == pytest.approx(allocated(SMALL, images), rel=0.05)


def test_without_contents_or_with_them_the_count_is_the_same() -> None:
    counted, real = (memory.footprint_of(SMALL, SHAPE, device) for device in ("meta", "cpu"))
    assert counted.fixed == real.fixed
    assert counted.chain == pytest.approx(real.chain, rel=1e-3)
    assert counted.learning == pytest.approx(real.learning, rel=1e-3)


def test_bytes_are_a_line_in_the_images() -> None:
    method, heights = SMALL.build(SHAPE, device="meta"), {}
    memory._shard(method, SHAPE, 1)  # its gradients are there from now on
    for images in (8, 16, 32):
        with memory.LiveBytes() as live:
            memory._shard(method, SHAPE, images)
        heights[images] = live.height
    assert heights[32] - heights[16] == pytest.approx(2 * (heights[16] - heights[8]), rel=0.01)


def test_live_bytes_rise_and_fall_with_storages() -> None:
    with memory.LiveBytes() as live:
        first = torch.zeros(1000)
        view, inside = first[:10], first.add_(1.0)
        second = first + inside
        assert (live.now, live.height) == (8000, 8000)
        del first, inside
        assert live.now == 8000  # the view keeps it
        del view, second
        assert (live.now, live.height) == (0, 8000)


@pytest.mark.parametrize("name", ["cdrl", "drl", "short_run", "ddpm"])
def test_the_largest_shard_is_the_largest_that_fits(name: str) -> None:
    recipe = methods.recipe(plain(configuration.resolve([]))["methods"][name])
    footprint = memory.footprint_of(recipe, ImageShape(8, 1))
    largest = footprint.largest_shard(1e8)
    assert footprint.needed(largest) <= (1 - memory.MARGIN) * 1e8 < footprint.needed(largest + 1)
    assert footprint.largest_shard(footprint.fixed) == 0
    assert (footprint.chain is None) == (name == "ddpm")


def test_a_plan_says_which_rows_do_not_fit_and_what_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    footprint = memory.Footprint(fixed=1e9, chain=None, learning=memory.Line(0.0, 1e8))
    monkeypatch.setattr(estimate, "_footprint_of", lambda method, shape: footprint)
    monkeypatch.setattr(estimate, "memory_bytes", lambda device: 8_000_000_000)
    line = ["scale=mini", "device=cpu", f"runs={tmp_path}", "methods.cdrl.shards=4"]
    said = [text for text in estimate.summary(make_plan(configuration.resolve(line))) if "shards" in text]
    assert (
        "row drl needs about 14 GB for its shards of 128 images; 8 GB here: more shards (methods.drl.shards=…)" in said
    )
    assert not any(text.startswith("row cdrl ") for text in said)


def test_nano_needs_no_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def counted(method: str, shape: ImageShape) -> memory.Footprint:
        raise UserError("nothing to count")

    monkeypatch.setattr(estimate, "_footprint_of", counted)
    monkeypatch.setattr(estimate, "memory_bytes", lambda device: 4_000_000_000)
    estimate.summary(make_plan(configuration.resolve(["device=cpu", f"runs={tmp_path}"])))
