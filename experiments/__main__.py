"""``python -m experiments …`` is ``cdrl run …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdrl import cli


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code, see `cdrl.cli.main`."""
    return cli.main(["run", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
