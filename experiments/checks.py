"""Types and ranges of what a command line can set: said before anything runs, in its own words.

Every check takes the name of a setting and its value, and raises `UserError` where they do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from typing_extensions import NotRequired, TypedDict

from cdrl.errors import UserError
from experiments.files import misfit

MOST, MOST_PROCESSES = 10**9, 10**5
"""Images, or reports, of one run, and processes or GPUs: more is a slip."""
LONGEST = 2000
"""Characters of a setting."""
_SHOWN = 200
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of settings",
}


class Sweep(TypedDict):
    """A row for each value of a setting."""

    key: str
    values: list[Any]
    label: NotRequired[str]


class Row(TypedDict):
    """A row of a manifest, as far as its shape goes; what the values may be is said where they are used."""

    method: str
    evaluate: dict[str, Any]
    label: NotRequired[str | None]
    train: NotRequired[dict[str, Any] | None]
    data: NotRequired[dict[str, Any] | None]
    published: NotRequired[dict[str, str | None] | None]
    sweep: NotRequired[Sweep | None]


class Manifest(TypedDict):
    """An experiment."""

    title: str
    question: str
    figures: list[str]
    order: int
    rows: dict[str, Row | None]


class Settings(TypedDict):
    """The shape of everything that a command line can set."""

    experiment: Manifest
    methods: dict[str, dict[str, Any]]
    runs: str
    results: str | None
    cache: str
    device: str
    logger: str
    engine: str
    plan: bool


def shape(settings: Mapping[str, Any]) -> None:
    """Groups are groups, lists are lists, and what cannot be left out is there."""
    if wrong := misfit(settings, Settings):
        raise UserError(f"{wrong} (--cfg job shows all settings)")
    for name, row in settings["experiment"]["rows"].items():
        if row and "kind" not in row["evaluate"]:
            raise UserError(f"experiment.rows.{name}.evaluate says no kind; write evaluate.kind=samples, or another")


def scale(settings: Mapping[str, Any]) -> None:
    """Everything in the scale."""
    for name in ("reports", "milestone_samples", "samples", "sample_batch"):
        count(f"scale.{name}", settings[name], most=MOST)
    budget("scale.budget", settings["budget"])
    if (rollbacks := settings["rollbacks"]) is True or not isinstance(rollbacks, int) or rollbacks < 0:
        raise UserError(f"scale.rollbacks must be a whole number from 0, not {rollbacks}")
    seeds("scale.seeds", settings["seeds"])
    shares = settings["milestones"]
    if not isinstance(shares, list) or not all(_is_number(share) and 0 < share <= 1 for share in shares):
        raise UserError(
            f"scale.milestones must be shares of the budget between 0 and 1 such as [0.5], not {shown(shares)}"
        )


def launcher(settings: Mapping[str, Any]) -> None:
    """How runs are spread over machines."""
    for name in ("workers", "threads"):
        if settings[name] != "auto":
            count(f"launcher.{name}", settings[name], "auto or ", most=MOST_PROCESSES)
    count("launcher.gpus_per_run", settings["gpus_per_run"], most=MOST_PROCESSES)
    if not isinstance(settings["exact"], bool):
        raise UserError(f"launcher.exact must be true or false, not {shown(settings['exact'])}")
    if settings["seconds"] is not None:
        positive("launcher.seconds", settings["seconds"])


def budget(name: str, value: Any) -> None:
    """A cost, or ``{seconds: s}``."""
    if isinstance(value, Mapping):
        if set(value) != {"seconds"}:
            raise UserError(f"{name} must be a number or {{seconds: s}}, not {shown(value)}")
        positive(f"{name}.seconds", value["seconds"])
    else:
        positive(name, value)


def count(name: str, value: Any, instead: str = "", most: int = 2**63 - 1) -> None:
    """A whole number from 1 to ``most``; ``instead`` names what else there is."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be {instead}a positive whole number in plain digits, not {shown(value)}")
    if value > most:
        raise UserError(f"{name} must be {instead}at most {most:,}, not {shown(value)}")


def positive(name: str, value: Any) -> None:
    """A number above 0, and no larger than what is counted can be."""
    if not _is_number(value) or not 0 < value <= 1e18:
        raise UserError(f"{name} must be a positive number, at most 1e18, not {shown(value)}")


def data(where: str, settings: Mapping[str, Any]) -> None:
    """Sizes of images that a machine could hold; that they are the data set's is said when it is loaded."""
    for name, most in (("image_size", 2**14), ("channels", 2**10)):
        count(f"{where}data.{name}", settings[name], most=most)
    if (classes := settings["classes"]) not in (None, 0) or isinstance(classes, bool):
        count(f"{where}data.classes", classes, "null, 0 or ", most=2**24)


def word(name: str, value: Any) -> None:
    """A name that could be a file's."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w-][\w.+-]{0,99}", value):
        raise UserError(f"{name} must be a word of letters, digits, '-', '_' and '.', not {shown(value)}")


def lines(name: str, value: Any) -> None:
    """Every text in it is one line, as tables and records have them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            lines(name, key)
            lines(f"{name}.{key}".removeprefix("."), item)
    elif isinstance(value, list):
        for item in value:
            lines(name, item)
    elif isinstance(value, str) and (len(value) > LONGEST or _UNPRINTABLE.search(value)):
        raise UserError(f"{name or shown(value)} must be one line of up to {LONGEST:,} characters, not {shown(value)}")


def shown(value: Any) -> str:
    """A value as an error can show it: on one line, and not endless."""
    try:
        text = _UNPRINTABLE.sub("�", str(dict(value) if isinstance(value, Mapping) else value))
    except ValueError:  # Python's limit of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def seeds(name: str, value: Any) -> None:
    """A list of one or more whole numbers, each once."""
    whole = isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63 for seed in value
    )
    if not whole or not value or len(set(value)) < len(value):
        raise UserError(f"{name} must be a list of different whole numbers such as [0,1,2], not {shown(value)}")


def like(name: str, value: Any, own: Any) -> None:
    """Of the same kind as the project's ``own`` value, groups key by key; null and what it does not have fit all."""
    if isinstance(own, Mapping) and isinstance(value, Mapping):
        for key in [key for key in value if key in own]:
            like(f"{name}.{key}", value[key], own[key])
    elif not _fits(value, own):
        raise UserError(f"{name} must be {_WORDS[type(own)]} such as {own}, not {shown(value)}")


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
