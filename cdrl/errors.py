"""The one kind of error that a user can mend."""

from __future__ import annotations

import errno
import os
import re

STORAGE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of a file's size",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
}
"""What says that storage is full, read-only or forbidden, and what to do about it."""


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


def storage_trouble(error: BaseException | None) -> str | None:
    """One line for an error behind which storage is full, read-only or forbidden; None for any other.

    Whoever writes a file says so by a `UserError` of its own where it can; this is for all the others, and for
    libraries that wrap the system's error in one of theirs.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
        if type(error).__name__ == "SafetensorError" and (code := re.search(r"(?:os error|code:) (\d+)", str(error))):
            number = int(code[1])
        if number in STORAGE:
            what = os.fsdecode(file) if isinstance(file, str | bytes) else "a file"
            verb = "no access to" if number in (errno.EACCES, errno.EPERM) else "cannot write"
            return f"{verb} {what} ({os.strerror(number)}); {STORAGE[number]}; the same command goes on"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
