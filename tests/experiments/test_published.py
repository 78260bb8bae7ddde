from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from experiments import published
from experiments.measurement import Measurement


def test_reads_every_line_of_the_file() -> None:
    lines = published.PUBLISHED.read_text().strip().splitlines()

    assert len(published.load()) == len(lines) - 1


def test_a_line_without_its_last_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("dataset,metric,model,value,family,status,source,note\nCIFAR-10,FID,Flow,46.37,EBM,confirmed\n")

    (number,) = published.load(path)

    assert (number.value, number.status, number.source, number.note) == (46.37, "confirmed", "", "")


def test_that_there_is_no_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert published.load(tmp_path / "published.csv") == ()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'published.csv'} is missing: no published number stands beside")
    assert said.count("\n") == 1


def found(model: str, dataset: str, metric: str, **about: Any) -> published.Number | None:
    measurement = Measurement(metric=metric, protocol="any", value=1.0, samples=1, **about)
    return published.find({"model": model}, dataset, measurement)


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "about", "value", "comparable"),
    [
        ("CDRL", "cifar10", "fd", {}, 4.31, True),
        ("CDRL", "imagenet32", "fd", {}, 9.35, True),
        ("CDRL", "digits", "fd", {}, 4.31, False),
        ("DRL (T6)", "celeba64", "fd", {}, 5.98, True),
        ("DRL (T6)", "cifar10", "is", {}, 8.30, True),
        ("CDRL", "cifar10", "auroc", {"against": "interp", "level": 0}, 0.75, True),
        ("CDRL", "cifar10", "auroc", {"against": "celeba64", "level": 0}, 0.84, True),
        ("CDRL", "imagenet32", "fd", {"weight": 0.7}, 6.18, True),
        ("CDRL", "imagenet32", "is", {"weight": 0}, 7.93, True),
        ("CDRL", "cifar10", "fd", {"steps": 8}, 4.58, True),
        ("CDRL", "digits", "fd", {"steps": 3}, 9.67, False),
    ],
)
def test_finds(model: str, dataset: str, metric: str, about: dict[str, Any], value: float, comparable: bool) -> None:
    number = found(model, dataset, metric, **about)

    assert number is not None
    assert (number.value, number.comparable) == (value, comparable)


def test_words_are_no_value() -> None:
    number = found("DRL", "imagenet32", "fd")

    assert number is not None
    assert (number.value, number.text) == (None, "does not converge")


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "about"),
    [
        ("CDRL", "cifar10", "recall", {}),
        ("CDRL", "cifar10", "auroc", {"against": "svhn", "level": 0}),
        ("CDRL", "cifar10", "auroc", {"against": "interp", "level": 1}),
        ("CDRL", "cifar10", "fd", {"steps": 4}),
        ("no such model", "cifar10", "fd", {}),
        ("Energy Matching", "celeba64", "fd", {}),
    ],
)
def test_finds_nothing_for_another_metric_model_data_set_or_condition(
    model: str, dataset: str, metric: str, about: dict[str, Any]
) -> None:
    assert found(model, dataset, metric, **about) is None


def test_the_protocols_of_a_published_number_are_its_metrics() -> None:
    number = found("CDRL", "cifar10", "fd")
    assert number is not None
    assert number.protocols == {"fid-legacy-pytorch", "fid-legacy-tensorflow"}


def test_statuses_are_kept() -> None:
    with published.PUBLISHED.open(newline="") as file:
        statuses = [line["status"] for line in csv.DictReader(file)]

    assert [number.status for number in published.load()] == statuses
