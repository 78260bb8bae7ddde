"""What a person is told fits into one line that can be written anywhere."""

from __future__ import annotations

import os
import pickle

from cdrl.errors import UserError, printable


def test_a_message_is_one_line_whatever_a_file_is_called() -> None:
    name = os.fsdecode(b"Mu\xf1oz\n\x85.png")
    error = UserError(f"{name} is wrong")
    assert str(error) == "Mu\\xf1oz \\x85.png is wrong"
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "also from another process"


def test_what_can_be_written_stays() -> None:
    assert printable("ñ, 画像 and [brackets]") == "ñ, 画像 and [brackets]"
    assert printable("\ud800") == "\\ud800"
