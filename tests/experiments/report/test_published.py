from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.report import published


def test_reads_every_line_of_the_file() -> None:
    lines = published.PUBLISHED.read_text().strip().splitlines()

    assert len(published.load()) == len(lines) - 1


def test_a_line_without_its_last_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("dataset,metric,model,value,family,status,source,note\nCIFAR-10,FID,Flow,46.37,EBM,confirmed\n")

    (number,) = published.load(path)

    assert (number.value, number.status, number.source, number.note) == (46.37, "confirmed", "", "")


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "value", "comparable"),
    [
        ("CDRL", "cifar10", "fd", 4.31, True),
        ("CDRL", "imagenet32", "fd", 9.35, True),
        ("CDRL", "digits", "fd", 4.31, False),
        ("DRL (T6)", "celeba64", "fd", 5.98, True),
        ("DRL (T6)", "cifar10", "is", 8.30, True),
        ("CDRL", "cifar10 vs interp", "auroc", 0.75, True),
        ("CDRL", "cifar10 vs celeba64", "auroc", 0.84, True),
        ("CDRL, guidance w=0.7", "imagenet32", "fd", 6.18, True),
    ],
)
def test_finds(model: str, dataset: str, metric: str, value: float, comparable: bool) -> None:
    found = published.find({"model": model}, dataset, metric)

    assert found is not None
    assert (found.value, found.comparable) == (value, comparable)


def test_words_are_no_value() -> None:
    found = published.find({"model": "DRL"}, "imagenet32", "fd")

    assert found is not None
    assert (found.value, found.text) == (None, "does not converge")


def test_finds_nothing_for_another_metric_model_or_data_set() -> None:
    assert published.find({"model": "CDRL"}, "cifar10", "recall") is None
    assert published.find({"model": "CDRL"}, "cifar10 vs svhn", "auroc") is None
    assert published.find({"model": "no such model"}, "cifar10", "fd") is None
    assert published.find({"model": "Energy Matching"}, "celeba64", "fd") is None


def test_statuses_are_kept() -> None:
    with published.PUBLISHED.open(newline="") as file:
        statuses = [line["status"] for line in csv.DictReader(file)]

    assert [number.status for number in published.load()] == statuses
