"""The one kind of error that a user can mend."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something outside the code is wrong; the message is one line that says what and how to mend it.

    It stays one line that can be written anywhere, whatever the names of files in it hold: see `printable`.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """One line of a text: breaks become spaces, and bytes of a file's name that are no UTF-8 become escapes."""
    line = " ".join(text.splitlines())
    return re.sub("[\ud800-\udfff]", lambda found: ascii(found[0])[1:-1].replace("\\udc", "\\x"), line)
