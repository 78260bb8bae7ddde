"""The resolved configuration: Hydra's compose API, with errors a person can read."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdrl.errors import UserError

CONF = Path(__file__).parent / "conf"
_GROUPS = ("experiment", "scale", "data", "metrics")
"""The groups whose choice decides which settings there are."""


def resolve(overrides: Sequence[str]) -> DictConfig:
    """The configuration of one command line, e.g. ``["experiment=table1", "scale=nano"]``.

    The manifest's own changes for the scale (``experiment.scales.<scale>``) are merged in.

    Raises:
        UserError: an unknown group, choice or key, named with its nearest neighbours.
    """
    _check_choices(overrides)
    try:
        with initialize_config_dir(config_dir=str(CONF.resolve()), version_base="1.3"):
            said = [_addable(override, overrides) for override in overrides]
            config = compose("config", overrides=[*said, *_chosen_by_experiment(overrides)])
        return _merged_for_scale(config, overrides)
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, overrides)) from error


def plain(config: Any) -> Any:
    """A configuration node as plain dicts, lists and numbers, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def merged(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it. Raises `UserError` for a key that ``base`` does not have."""
    target = OmegaConf.create(dict(base))
    OmegaConf.set_struct(target, True)
    try:
        result = OmegaConf.merge(target, OmegaConf.create(dict(changes)))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    return plain(result)


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that name a piece of configuration by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def choices(group: str) -> list[str]:
    """The names in a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _chosen_by_experiment(overrides: Sequence[str]) -> list[str]:
    """The manifest's own picks of other groups at this scale (``experiment.choose``), where the user picks none."""
    picks = _of_manifest("choose", overrides)
    return [f"{group}={choice}" for group, choice in picks.items() if group not in _named(overrides)]


def _addable(override: str, overrides: Sequence[str]) -> str:
    """An override of what the manifest has at this scale alone (``experiment.scales``) must add it, for Hydra."""
    where, _, key = override.partition("=")[0].partition(".")
    changes = OmegaConf.create(_of_manifest("scales", overrides))
    known = where == "experiment" and key and OmegaConf.select(changes, key) is not None
    return f"++{override}" if known else override


def _of_manifest(key: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the chosen manifest says under ``key`` for the chosen scale."""
    named = _named(overrides)
    manifest = yaml.safe_load((CONF / "experiment" / f"{named.get('experiment', 'table1')}.yaml").read_text())
    return (manifest["experiment"].get(key) or {}).get(named.get("scale", "nano")) or {}


def _named(overrides: Sequence[str]) -> dict[str, str]:
    """Each override's value by its key."""
    return dict(override.lstrip("+").split("=", 1) for override in overrides)


def _merged_for_scale(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The manifest's changes for the scale laid over it; what the command line says of it still has the last word."""
    changes = (config.experiment.get("scales") or {}).get(config.scale.name)
    if changes:
        keys = [override.lstrip("+").partition("=")[0] for override in overrides]
        said = {key: OmegaConf.select(config, key) for key in keys if key.startswith("experiment.")}
        OmegaConf.set_struct(config, False)
        config.experiment = OmegaConf.merge(config.experiment, changes)
        for key, value in said.items():
            OmegaConf.update(config, key, value, merge=False)
        OmegaConf.set_struct(config, True)
    return config


def _check_choices(overrides: Sequence[str]) -> None:
    for override in overrides:
        name, found, value = override.lstrip("+").partition("=")
        if name.startswith("~"):
            raise UserError(f"'{override}' cannot be taken away; write {name.lstrip('~')}=null to leave it out")
        if not found:
            raise UserError(f"'{override}' is not an override; write key=value, e.g. experiment=table1 scale=nano")
        if (CONF / name).is_dir() and value not in choices(name):
            raise UserError(
                f"unknown {name} '{value}'{_nearest(value, choices(name))}; there are {', '.join(choices(name))}"
            )


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    cause = error.__cause__ or error
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if f"'{key}'" in str(error) or (hasattr(cause, "full_key") and str(getattr(cause, "full_key", "")) == key):
            return f"unknown setting '{key}'{_nearest(key, _all_keys(overrides))}; --cfg job shows all settings"
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) + " (--cfg job shows all settings)"


def _all_keys(overrides: Sequence[str]) -> list[str]:
    """The settings there are with the chosen experiment, scale, data and protocol."""
    config = resolve([f"{name}={value}" for name, value in _named(overrides).items() if name in _GROUPS])

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        names = [f"{prefix}{name}" for name in node]
        return names + [key for name, value in node.items() for key in walk(value, f"{prefix}{name}.")]

    return walk(OmegaConf.to_container(config), "")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
