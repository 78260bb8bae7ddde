"""The resolved configuration: Hydra's compose API, with errors a person can read.

A file of ``conf/method`` or ``conf/experiment`` says under ``scales`` what is different at a scale, and an experiment
under ``choose`` which data or protocol it takes there. Both are handed to Hydra as overrides before the user's own,
which so have the last word. (Hydra's own pattern for this, one optional file per experiment and scale named by an
interpolation, cannot choose other groups, and would spread a method over several files.)
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from cdrl.errors import UserError
from experiments import checks

CONF = Path(__file__).parent / "conf"
_GROUPS = ("experiment", "scale", "data", "metrics", "launcher")
"""The groups whose choice decides which settings there are."""
_PATHS = frozenset(
    {"runs", "results", "cache", "checkpoint", "data.root", "data.data_cache", "metrics.weights", "launcher.logs"}
)
"""Settings that hold a path, which need not be spelt as Hydra's grammar wants it, and may begin with ``~``."""


def resolve(overrides: Sequence[str]) -> DictConfig:
    """The configuration of one command line, e.g. ``["experiment=table1", "scale=nano"]``.

    Raises:
        UserError: an unknown group, choice or key, named with its nearest neighbours.
    """
    for override in overrides:
        checks.lines("", override)
    _check_choices(overrides)
    chosen = _assignments(overrides)
    try:
        methods = f"method=[{','.join(choices('method'))}]"
        changes = _specialisation(chosen.get("experiment", "table1"), chosen.get("scale", "nano"), chosen)
        with initialize_config_dir(config_dir=str(CONF.resolve()), version_base="1.3"):
            config = compose("config", overrides=[methods, *changes, *map(_spelt, overrides)])
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, overrides)) from error
    if lacking := [name for name in choices("method") if not OmegaConf.is_dict((config.methods or {}).get(name))]:
        raise UserError(f"methods.{lacking[0]} cannot be left out; leave out its rows: experiment.rows.<row>=null")
    with open_dict(config):
        for node in (config.experiment, *config.methods.values()):
            node.pop("scales", None)
            node.pop("choose", None)
    for key in _PATHS:
        with suppress(OmegaConfBaseException):  # an interpolation of nothing, which `plain` tells
            path = OmegaConf.select(config, key)
            if isinstance(path, str) and path.startswith("~"):
                OmegaConf.update(config, key, os.path.expanduser(path))
    return config


def text(config: DictConfig) -> str:
    """The configuration as YAML, interpolations resolved. Raises `UserError` where one leads nowhere."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def plain(config: Any) -> Any:
    """A configuration node as plain dicts, lists and numbers. Raises `UserError` for an interpolation of nothing."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, ())) from error


def merged(base: DictConfig, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, resolved. Raises `UserError` for a key that ``base`` does not have."""
    target = base.copy()
    OmegaConf.set_struct(target, True)
    try:
        return plain(OmegaConf.merge(target, OmegaConf.create(dict(changes))))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that name a piece of configuration by its content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def choices(group: str) -> list[str]:
    """The names in a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@lru_cache
def manifest(name: str) -> DictConfig:
    """An experiment's file as it is, without anything composed or resolved."""
    return OmegaConf.load(CONF / "experiment" / f"{name}.yaml")  # type: ignore[return-value]


def experiments(scale: str) -> list[str]:
    """The experiments of ``experiment=all`` at a scale, by their ``order``; one may say where it does not belong."""
    names = [name for name in choices("experiment") if scale in manifest(name).experiment.get("all", choices("scale"))]
    return sorted(names, key=lambda name: (manifest(name).experiment.order, name))


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each experiment that a command line asks for."""
    every = "experiment=all"
    if every not in overrides:
        return [list(overrides)]
    names = experiments(_assignments(overrides).get("scale", "nano"))
    return [[f"experiment={name}" if word == every else word for word in overrides] for name in names]


def _specialisation(experiment: str, scale: str, chosen: Mapping[str, str]) -> list[str]:
    """What the files of methods and the experiment say of the scale, as overrides; later ones win."""
    file = manifest(experiment)
    picks = file.experiment.get("choose", {}).get(scale) or {}
    changes = [f"{group}={choice}" for group, choice in picks.items() if group not in chosen]
    for name in choices("method"):
        scales = OmegaConf.select(OmegaConf.load(CONF / "method" / f"{name}.yaml"), f"scales.{scale}")
        changes += _as_overrides(f"methods.{name}", scales or {})
    changes += _as_overrides("methods", file.get("methods") or {})
    return [*changes, *_as_overrides("experiment", OmegaConf.select(file, f"experiment.scales.{scale}") or {})]


def _as_overrides(key: str, node: Any) -> Iterator[str]:
    """A configuration node as Hydra overrides, one for each leaf; interpolations stay what they are."""
    value: Any = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _as_overrides(f"{key}.{name}", item)
    else:
        yield f"++{key}={_literal(value)}"


def _literal(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", "\\'"), value) + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _spelt(override: str) -> str:
    """An override as Hydra's grammar wants it: a path in quotes, unless it is already; ``${…}`` in it is a setting."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in _PATHS or value in ("", "null"):
        return override
    quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    return override if quoted else f"{key}={_literal(value)}"


def _assignments(overrides: Sequence[str]) -> dict[str, str]:
    """Each override's value by its key."""
    return dict(override.lstrip("+").split("=", 1) for override in overrides)


def _check_choices(overrides: Sequence[str]) -> None:
    for override in overrides:
        name, equals, value = override.lstrip("+").partition("=")
        if name.startswith("~"):
            raise UserError(f"'{override}' cannot be taken away; write {name.lstrip('~')}=null to leave it out")
        if not equals or not name:
            raise UserError(f"'{override}' is not an override; write key=value, e.g. experiment=table1 scale=nano")
        if value in ("", "null") and name in ("runs", "cache"):
            raise UserError(f"'{override}' names no folder; write {name}=FOLDER, or leave it out")
        if {"scales", "choose"} & set(name.split(".")):
            raise UserError(f"'{name}' is how a file says what a scale changes; set the changed setting itself")
        if name == "method":
            raise UserError(f"unknown setting 'method'; set methods.{value}.<key>=… (--cfg job shows all settings)")
        if (CONF / name).is_dir() and value not in choices(name):
            raise UserError(
                f"unknown {name} '{value}'{_nearest(value, choices(name))}; there are {', '.join(choices(name))}"
            )


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    cause = error.__cause__ or error
    if isinstance(error, OverrideParseException):
        special = "a value with spaces or any of ()[]{}:=,'\" in it belongs in quotes of its own"
        return f"'{error.override}' cannot be read; {special}, e.g. \"KEY=['a (1).png']\""
    if isinstance(cause, InterpolationKeyError) and (named := re.search("key '(.*?)' not found", str(cause))):
        key = f"{cause.full_key} takes its value from" if cause.full_key else "a setting takes its value from"
        text = f"{key} ${{{named[1]}}}, and '{named[1]}' not found; set that"
        return f"{text}, or write \\${{…}} where these characters are meant" if cause.full_key in _PATHS else text
    for key in _assignments(overrides):
        if f"'{key}'" in str(error) or str(getattr(cause, "full_key", "")) == key:
            known = _all_keys(overrides)
            if key in known:
                return f"setting '{key}' is there already; write {key}=… without the +"
            return f"unknown setting '{key}'{_nearest(key, known)}; --cfg job shows all settings"
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) + " (--cfg job shows all settings)"


def _all_keys(overrides: Sequence[str]) -> list[str]:
    """The settings there are with the chosen experiment, scale, data and protocol."""
    config = resolve([f"{name}={value}" for name, value in _assignments(overrides).items() if name in _GROUPS])

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{name}"
            yield from walk(value, f"{prefix}{name}.")

    return list(walk(OmegaConf.to_container(config), ""))


def _nearest(word: str, known: Sequence[str]) -> str:
    """A hint: what ends in the word, else what is spelt most like it."""
    close = [name for name in known if name.endswith(f".{word}")] or difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
