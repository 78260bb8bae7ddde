"""SHA256SUMS: what every file of a results folder was when it was written (``sha256sum -c`` reads it too)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cdrl.errors import UserError
from experiments.files import read_text, sha256, write_text, write_together

NAME = "SHA256SUMS"
_REMEDY = "make what is in the folder again, by the command that made it"


def begin(folder: Path, names: Iterable[str]) -> None:
    """Write the sums of these files, and forget all others: they were made from older ones."""
    write_text(folder / NAME, _text({name: sha256(folder / name) for name in names}))


def add(folder: Path, names: Iterable[str]) -> None:
    """Write the sums of these files, which were just made from the others; nothing where there are no sums yet."""
    if (folder / NAME).exists():
        write_text(folder / NAME, _text({**read(folder), **{name: sha256(folder / name) for name in names}}))


def write(folder: Path, texts: Mapping[str, str], *, anew: bool = False) -> None:
    """Write files that belong together and their sums, all or none of them, as `experiments.files.write_together`.

    Args:
        texts: by file name.
        anew: begin the sums with these files; else add them to those that are there, and write none where none are.
    """
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    if not anew and (folder / NAME).exists():
        sums = {**read(folder), **sums}
    write_together(folder, {**texts, NAME: _text(sums)} if anew or (folder / NAME).exists() else texts)


def read(folder: Path) -> dict[str, str]:
    """File → sum. Raises `UserError` where a line is none."""
    lines = read_text(folder / NAME, _REMEDY).split("\n")[:-1]
    sums = {line[66:]: line[:64] for line in lines if re.fullmatch(r"[0-9a-f]{64}  [^/\x00-\x1f]{1,255}", line)}
    if len(sums) < len(lines) or not sums:
        raise UserError(f"{folder / NAME} is damaged (it is no list of sums); {_REMEDY}")
    return sums


def differences(folder: Path) -> list[str]:
    """What is not as it was written, a line for each file."""
    sums = read(folder)
    there = {path.name for path in folder.iterdir() if path.is_file() and path.name != NAME}
    lost = [f"{folder / name} is missing" for name in sorted(sums.keys() - there)]
    unknown = [f"{folder / name} is of no command: {NAME} does not list it" for name in sorted(there - sums.keys())]
    changed = [
        f"{folder / name} was changed after it was written"
        for name in sorted(there & sums.keys())
        if sha256(folder / name) != sums[name]
    ]
    return [*lost, *unknown, *changed]


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
