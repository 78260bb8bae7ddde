"""``python -m experiments …`` is ``cdrl …``; settings alone, without a command, are those of ``cdrl run``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdrl import cli


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code, see `cdrl.cli.main`."""
    named = bool(arguments) and any(arguments[0] in group for group in cli.COMMANDS.values())
    return cli.main([*([] if named else ["run"]), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
