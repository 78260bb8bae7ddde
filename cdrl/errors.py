"""The one kind of error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong; the message is one line that says what and how to mend it."""
