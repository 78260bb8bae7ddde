"""Types and ranges of what a command line can set: said before anything runs, in its own words.

Every check takes the name of a setting and its value, and raises `UserError` where they do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cdrl.errors import UserError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of settings",
}


def scale(settings: Mapping[str, Any]) -> None:
    """Everything in the scale."""
    for name in ("reports", "milestone_samples", "samples", "sample_batch"):
        count(f"scale.{name}", settings[name])
    budget("scale.budget", settings["budget"])
    if (rollbacks := settings["rollbacks"]) is True or not isinstance(rollbacks, int) or rollbacks < 0:
        raise UserError(f"scale.rollbacks must be a whole number from 0, not {rollbacks}")
    seeds("scale.seeds", settings["seeds"])
    shares = settings["milestones"]
    if not isinstance(shares, list) or not all(_is_number(share) and 0 < share <= 1 for share in shares):
        raise UserError(f"scale.milestones must be shares of the budget between 0 and 1 such as [0.5], not {shares}")


def launcher(settings: Mapping[str, Any]) -> None:
    """How runs are spread over machines."""
    for name in ("workers", "threads"):
        if settings[name] != "auto":
            count(f"launcher.{name}", settings[name], "auto or ")
    count("launcher.gpus_per_run", settings["gpus_per_run"])
    if not isinstance(settings["exact"], bool):
        raise UserError(f"launcher.exact must be true or false, not {settings['exact']}")
    if settings["seconds"] is not None:
        positive("launcher.seconds", settings["seconds"])


def budget(name: str, value: Any) -> None:
    """A cost, or ``{seconds: s}``."""
    if isinstance(value, Mapping):
        if set(value) != {"seconds"}:
            raise UserError(f"{name} must be a number or {{seconds: s}}, not {dict(value)}")
        positive(f"{name}.seconds", value["seconds"])
    else:
        positive(name, value)


def count(name: str, value: Any, instead: str = "") -> None:
    """A whole number of at least 1; ``instead`` names what else there is."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be {instead}a positive whole number in plain digits, not {value}")


def positive(name: str, value: Any) -> None:
    """A finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, not {value}")


def seeds(name: str, value: Any) -> None:
    """A list of one or more whole numbers, each once."""
    whole = isinstance(value, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UserError(f"{name} must be a list of different whole numbers such as [0,1,2], not {value}")


def like(name: str, value: Any, own: Any) -> None:
    """Of the same kind as the project's ``own`` value, groups key by key; null and what it does not have fit all."""
    if isinstance(own, Mapping) and isinstance(value, Mapping):
        for key in [key for key in value if key in own]:
            like(f"{name}.{key}", value[key], own[key])
    elif not _fits(value, own):
        raise UserError(f"{name} must be {_WORDS[type(own)]} such as {own}, not {value}")


def _fits(value: Any, own: Any) -> bool:
    if value is None or own is None:
        return True
    if isinstance(own, list) and isinstance(value, list):
        return not own or all(any(_fits(item, one) for one in own) for item in value)
    if isinstance(own, float):
        return _is_number(value)
    return type(value) is type(own)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
