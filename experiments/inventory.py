"""One line of ``make doctor``: a data set's split, or a file of weights or statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Something that a command needs, and where it belongs.

    Attributes:
        name: what it is; a data set with its split, as in "cifar10/train".
        where: the file or folder it belongs in, or where it was found.
        variable: the environment variable that may name its folder, or empty.
        sha256: as pinned (of a data set: of its decoded pixels), else as found, else empty.
        state: "ready", "found" (files are there, not decoded yet), "missing", or "wrong" when its hash is not the
            pinned one.
        needed_for: what cannot be computed without it.
        remedy: what to do when it is not there.
    """

    name: str
    where: str
    variable: str
    sha256: str
    state: str
    needed_for: str
    remedy: str

    @property
    def present(self) -> bool:
        return self.state in ("ready", "found")
