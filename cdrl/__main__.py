"""``python -m cdrl`` is the command ``cdrl``."""

import sys

from cdrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
