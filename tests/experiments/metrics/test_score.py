"""`Scorer` and the statistics it compares with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cdrl.errors import UserError
from experiments.data import ImageSet, load
from experiments.measurement import COLUMNS
from experiments.metrics import METRICS, Extracted, Extractor, Metric, Scorer, metric, protocols, to_pixels
from experiments.metrics.extractors import Pixels
from experiments.metrics.registry import needs_features
from experiments.report import tables
from experiments.report.study import Study
from tests.reference import EXACT

PROTOCOL = protocols.load("fd-digits")


class Counting:
    """An extractor that counts the images it sees."""

    def __init__(self, inner: Extractor) -> None:
        self.name, self.dim, self.classes, self.sha256 = inner.name, inner.dim, inner.classes, inner.sha256
        self._inner = inner
        self.images = 0

    def __call__(self, pixels: Pixels) -> Extracted:
        self.images += len(pixels)
        return self._inner(pixels)


class Remembering(Counting):
    """Looks at every image once, and then remembers: rounding depends on the images it is looked at with."""

    def __init__(self, inner: Extractor, images: ImageSet) -> None:
        super().__init__(inner)
        seen = inner(images.images)
        assert seen.probabilities is not None
        self._seen = dict(
            zip(map(bytes, images.images), zip(seen.features, seen.probabilities, strict=True), strict=True)
        )

    def __call__(self, pixels: Pixels) -> Extracted:
        return Extracted(*map(torch.stack, zip(*(self._seen[bytes(image)] for image in pixels), strict=True)))


def test_streaming_equals_one_batch(digits: Extractor, cache: Path) -> None:
    images = load("digits", "test")
    extractor = Remembering(digits, images)
    Scorer(PROTOCOL, load("digits", "train"), cache, extractor=digits)  # its reference statistics are kept
    labels = torch.as_tensor(images.labels)
    results = []
    for size in (500, 37):
        scorer = Scorer(PROTOCOL, load("digits", "train"), cache, extractor=extractor)
        for start in range(0, 500, size):
            scorer.update(images.images[start : start + size], labels[start : start + size])
        assert scorer.samples == 500
        assert scorer.reference_samples == 1297
        results.append(scorer.result())
    assert list(results[0]) == list(PROTOCOL.metrics)
    assert results[0] == pytest.approx(results[1], rel=EXACT)


def test_result_equals_plain_numpy(digits: Extractor, cache: Path) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    train, test = load("digits", "train"), load("digits", "test")
    scorer = Scorer(PROTOCOL, train, cache, extractor=digits)
    scorer.update(test.images)
    a, b = (digits(images.images).features.double().numpy() for images in (train, test))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(linalg.sqrtm(cov_a @ cov_b)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert scorer.result()["fd"] == pytest.approx(expected, rel=1e-5)


def test_reference_statistics_are_computed_once_for_each_content(digits: Extractor, tmp_path: Path) -> None:
    extractor, train = Counting(digits), load("digits", "train")

    def seen(images: object = train, **changes: object) -> int:
        before = extractor.images
        Scorer(replace(PROTOCOL, **changes), images, tmp_path, extractor=extractor)  # type: ignore[arg-type]
        return extractor.images - before

    assert seen(metrics=("fd",)) == 1297
    assert seen() == 1297, "moments alone do not tell the features"
    assert seen() == 0
    assert seen(metrics=("fd",)) == 0
    assert seen(samples=50) == 0, "the number of samples says nothing about the reference"
    assert seen(flips=True) == 2 * 1297
    assert seen(reference_samples=100) == 100
    assert seen(train.subset(np.arange(1297)[::-1])) == 1297
    for path in (tmp_path / "reference").glob("*"):
        path.write_bytes(b"damaged")
    assert seen() == 1297, "damaged statistics are made again"


def test_the_headline_is_the_first_metric_alone(digits: Extractor, cache: Path) -> None:
    results = []
    for protocol in (PROTOCOL, PROTOCOL.headline):
        scorer = Scorer(protocol, load("digits", "train"), cache, extractor=digits)
        scorer.update(load("digits", "test").images)
        results.append(scorer.result())
    assert results[1] == {PROTOCOL.metrics[0]: results[0][PROTOCOL.metrics[0]]}


def test_flips_add_every_mirror_image(digits: Extractor, tmp_path: Path) -> None:
    train = load("digits", "train")
    protocol = replace(PROTOCOL, flips=True, metrics=("fd",))
    scorer = Scorer(protocol, train, tmp_path, extractor=digits)
    scorer.update(np.concatenate([train.images, train.images[:, :, ::-1]]))
    assert scorer.result()["fd"] == pytest.approx(0, abs=1e-6)


def test_another_split_or_too_few_images_are_refused(digits: Extractor, cache: Path) -> None:
    with pytest.raises(UserError, match="compares with 'train'"):
        Scorer(PROTOCOL, load("digits", "test"), cache, extractor=digits)
    with pytest.raises(UserError, match="needs 5000 train images; digits has 1297"):
        Scorer(replace(PROTOCOL, reference_samples=5000), load("digits", "train"), cache, extractor=digits)
    with pytest.raises(UserError, match="needs 2 train images; digits has 1: add some"):
        Scorer(PROTOCOL, load("digits", "train").subset([0]), cache, extractor=digits)


def test_images_that_the_extractor_cannot_see_are_refused_before_it_is_built(tmp_path: Path) -> None:
    train = load("digits", "train")
    colour = replace(train, images=train.images.repeat(3, axis=3), known_checksum=None)
    with pytest.raises(UserError, match="fd-digits cannot look at 8x8 images of 3 channels"):
        Scorer(PROTOCOL, colour, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_few_samples_are_refused(digits: Extractor, cache: Path) -> None:
    train = load("digits", "train")
    scorer = Scorer(PROTOCOL, train, cache, extractor=digits)
    scorer.update(train.images[:1])
    with pytest.raises(UserError, match="at least 2 samples, not 1"):
        scorer.result()
    scorer.update(train.images[1:2])
    assert np.isfinite(list(scorer.result().values())).all()


def test_rounding_is_part_of_the_protocol(digits: Extractor, cache: Path) -> None:
    train = load("digits", "train")
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for rounding in (True, False):
        scorer = Scorer(replace(PROTOCOL, rounding=rounding), train, cache, extractor=digits)
        scorer.update(to_pixels(images, rounding))
        with pytest.raises(ValueError, match="looks at"):
            scorer.update(to_pixels(images, not rounding))


def test_pixels_are_clamped_and_rounded() -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 0.001, 1.0, 7.0]).reshape(1, 1, 2, 3)
    assert to_pixels(images, True).flatten().tolist() == [0, 0, 128, 128, 255, 255]
    assert to_pixels(images, True).shape == (1, 2, 3, 1)
    assert to_pixels(images, False).flatten()[2].item() == 127.5


def test_class_metrics_need_classes(digits: Extractor, cache: Path) -> None:
    extractor = Counting(digits)
    extractor.classes = 0
    with pytest.raises(UserError, match="knows no classes"):
        Scorer(PROTOCOL, load("digits", "train"), cache, extractor=extractor)


def test_a_new_metric_needs_its_one_entry(
    digits: Extractor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured by protocols that name it, and has a title, a direction and an axis in tables."""
    entry = Metric(
        "spread", "Spread of features", "higher", needs="features", compute=lambda c: float(c.features.std())
    )
    with pytest.raises(UserError, match="unknown metrics"):
        replace(PROTOCOL, metrics=("spread",))
    monkeypatch.setitem(METRICS, entry.name, entry)
    protocol = replace(PROTOCOL, metrics=("fd", "spread"))
    scorer = Scorer(protocol, load("digits", "train"), cache, extractor=digits)
    images = load("digits", "test").images
    scorer.update(images)
    assert scorer.result()["spread"] == pytest.approx(float(digits(images).features.std()))
    assert needs_features(protocol.metrics)
    assert not needs_features(("fd", "is"))

    columns = {"experiment": "e", "scale": "nano", "dataset": "digits", "protocol": "fd-digits", "verdict": "not-run"}
    cells = [
        {**columns, "row": row, "label": row, "method": row, "metric": "spread", "value": value, "values": values}
        for row, value, values in (("a", 1.0, "0.9 1.1"), ("b", 2.0, "1.9 2.1"))
    ]
    pd.DataFrame(cells, columns=list(COLUMNS)).to_csv(tmp_path / "cells.csv", index=False)
    seeds = [{"seed": seed, "folder": f"runs/{seed}/eval", "run": f"runs/{seed}"} for seed in (0, 1)]
    rows = [{"row": row, "label": row, "method": row, "method_label": row, "evaluations": seeds} for row in ("a", "b")]
    facts = {"name": "e", "title": "t", "question": "", "figures": [], "order": 1, "rows": rows}
    (tmp_path / "experiment.json").write_text(json.dumps(facts))
    table, _ = tables.build(Study.load(tmp_path))
    assert table.header[1] == "Spread of features (fd-digits)\u00a0↑"
    assert table.best == {(1, 1)}


def test_metrics_are_named_for_people_and_unknown_ones_by_their_own_name() -> None:
    assert METRICS["fd"].axis("fd-digits") == "Fréchet distance (fd-digits)\u00a0↓"
    assert metric("known_exact").axis("inpaint") == "Known pixels exact (inpaint)"
    assert metric("something_new").axis("p") == "Something new (p)"
