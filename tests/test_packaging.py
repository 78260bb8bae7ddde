"""What is installed: the library alone by ``pip install .``; what it needs is what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LIBRARY = ("torch", "numpy", "safetensors", "pillow")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``pip install .`` builds it."""
    folder = tmp_path_factory.mktemp("packaging")
    source = copied(folder / "source")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


def copied(folder: Path) -> Path:
    """The checkout's packages in a folder of their own, for building leaves files behind."""
    for name in ("cdrl", "baselines", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip(*arguments: str, python: Path = Path(sys.executable)) -> str:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def environment(folder: Path, names: Iterable[str]) -> Path:
    """A virtual environment with these distributions and nothing else of what is installed here; its Python."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    installed = Path(sysconfig.get_path("purelib"))
    for name in names:
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(installed / top)
    return folder / "bin" / "python"


def closure(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they need here."""
    names_seen: set[str] = set()
    left = [(name, "") for name in names]
    while left:
        name, extra = left.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if f"{name}[{extra}]" in names_seen:
            continue
        names_seen.add(f"{name}[{extra}]")
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                left += [(needed.name, one) for one in (needed.extras or {""})]
                left += [(needed.name, "")]
    return {name.partition("[")[0] for name in names_seen}


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone_and_works_without_the_suite(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        described = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {name.partition("/")[0] for name in names} == {"cdrl", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {"cdrl/py.typed", "cdrl/cli.py", "cdrl/networks/energy.py"} <= set(names)
    plain = [
        Requirement(line.partition(": ")[2])
        for line in described.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert {needed.name for needed in plain} == set(LIBRARY)

    python = environment(tmp_path / "venv", closure(LIBRARY))
    pip("install", "--no-deps", "--no-index", str(wheel), python=python)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([*arguments], cwd=tmp_path, capture_output=True, text=True, env=variables)

    for absent in ("experiments", "baselines", "hydra", "rich", "pandas"):
        assert call(str(python), "-c", f"import {absent}").returncode != 0, absent
    script = str(python.with_name("cdrl"))
    help_text = call(script, "--help")
    assert help_text.returncode == 0
    assert "The library alone is installed" in help_text.stdout
    version = call(script, "--version")
    assert version.stdout == f"cdrl {wheel.name.split('-')[1]}\n"
    drawn = call(script, "sample", str(ROOT / "results" / "demo" / "nano"), "--images", "4", "--outdir", "samples")
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "samples").iterdir())) == 4
    refused = call(script, "run", "experiment=table1")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


@pytest.mark.slow
def test_an_editable_install_says_nothing_and_finds_the_suite(tmp_path: Path) -> None:
    source = copied(tmp_path / "source")
    python = environment(tmp_path / "venv", ["setuptools"])
    said = pip(
        "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--editable", str(source),
        python=python,
    )  # fmt: skip
    assert said == ""
    shown = subprocess.run(
        [str(python.with_name("cdrl")), "score", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.stdout.startswith("usage: cdrl score "), shown.stderr


def test_every_needed_version_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    needed = {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in texts}
    assert needed - {"cdrl", "setuptools"} <= pins
