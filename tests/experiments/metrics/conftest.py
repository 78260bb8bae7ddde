"""One trained digits classifier for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.metrics import Extractor, build


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> Extractor:
    return build("digits", cache)
