"""The resolved configuration: what wins over what, and mistakes in one line each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from cdrl.errors import UserError
from experiments import configuration
from experiments.configuration import expand, merged, plain, resolve, text


def mistake(*overrides: str) -> str:
    """The message, which is one line."""
    with pytest.raises(UserError) as error:
        plain(resolve(overrides))
    message = str(error.value)
    assert "\n" not in message
    return message


def value(config: DictConfig, key: str) -> Any:
    return plain(OmegaConf.select(config, key))


class TestSpecialisation:
    def test_a_methods_scale_wins_over_its_base(self) -> None:
        own, base = (OmegaConf.load(configuration.CONF / "method" / "cdrl.yaml") for _ in range(2))
        nano = own.scales.nano
        config = resolve(["scale=nano"]).methods.cdrl
        assert config.energy.width == nano.energy.width != base.energy.width
        assert config.batch_size == nano.batch_size != base.batch_size
        assert config.energy.kernel == base.energy.kernel  # what a scale does not mention stays

    def test_a_methods_base_may_be_another_method(self) -> None:
        """DRL starts from CDRL, and CDRL's scales are not DRL's."""
        cdrl, drl = (value(resolve(["scale=mini"]), f"methods.{name}") for name in ("cdrl", "drl"))
        assert drl["_target_"] == cdrl["_target_"]
        assert drl["initializer"] is None
        assert drl["chain"]["steps"] == 15 != cdrl["chain"]["steps"]

    @pytest.mark.parametrize(
        "override",
        ["methods.cdrl.energy.width=7", "methods.cdrl.chain.steps=9", "scale.budget=11", "scale.samples=13"],
    )
    def test_the_command_line_has_the_last_word(self, override: str) -> None:
        key, _, expected = override.partition("=")
        assert value(resolve([override]), key) == int(expected)

    def test_an_interpolation_follows_what_the_command_line_says(self) -> None:
        config = resolve(["scale=mini", "methods.cdrl.chain.steps=3"])
        assert value(config, "methods.cdrl.sampling.steps") == 3
        assert value(resolve(["methods.cdrl.sampling.steps=4"]), "methods.cdrl.chain.steps") == 5

    def test_an_experiment_specialises_methods_over_their_scales(self) -> None:
        manifest = OmegaConf.load(configuration.CONF / "experiment" / "toy.yaml")
        own = plain(manifest.methods.cdrl)
        config = value(resolve(["experiment=toy", "scale=nano"]), "methods.cdrl")
        for key, expected in own.items():
            actual = config[key]
            assert actual == ({**actual, **expected} if isinstance(expected, dict) else expected)

    def test_an_experiment_at_a_scale_adds_rows_and_changes_others(self) -> None:
        assert "cdrl_large" in resolve(["scale=paper"]).experiment.rows
        assert "cdrl_large" not in resolve(["scale=nano"]).experiment.rows
        sweep = resolve(["experiment=guidance", "scale=nano"]).experiment.rows.cdrl.sweep
        assert plain(sweep["values"]) == [0, 0.1, 0.3, 0.7, 1.0, 3.0]
        assert sweep.key == "evaluate.guidance"

    def test_data_and_protocol_are_the_scales_the_experiments_or_the_users(self) -> None:
        assert resolve(["scale=nano"]).data.name == "digits"
        assert resolve(["experiment=guidance", "scale=mini"]).data.name == "tinyimagenet32"
        assert resolve(["experiment=guidance", "scale=mini", "data=cifar10"]).data.name == "cifar10"
        assert resolve(["scale=nano", "metrics=fid-clean"]).metrics.name == "fid-clean"

    def test_what_specialises_does_not_stay(self) -> None:
        config = resolve(["experiment=guidance", "scale=mini"])
        assert not {"scales", "choose"} & (
            set(config.experiment) | {key for one in config.methods.values() for key in one}
        )


@pytest.mark.parametrize(
    "path",
    [
        "runs", "/tmp/a b", "/tmp/[x]", "/tmp/a=b", "~/x", "~", "/tmp/{a}", "/tmp/ü ñ/数据", "/tmp/it's", "a,b", "(x)",
        "x #1", " lead", "tail ", "back\\slash", "end\\", "C:\\data", "it\\'s", "a:b", "+x", "*", "?", "null and void",
        "1e3", "007", "true", "[]", "$HOME/x", "/tmp/$x", "'tis", '"', "a$", "/tmp/$(x)", 'say "x"',
        "~nobody-has-this-name/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["runs", "data.root"])
def test_paths_need_no_quoting(key: str, path: str) -> None:
    assert value(resolve([f"{key}={path}"]), key) == os.path.expanduser(path)


@pytest.mark.parametrize("key", sorted(configuration._PATHS))
def test_every_path_may_begin_in_ones_home_and_hold_anything(key: str) -> None:
    config = resolve(["launcher=slurm", "metrics=fid-clean", f"{key}=~/ü [1] (a), b=$c 'd'"])
    assert value(config, key) == str(Path.home() / "ü [1] (a), b=$c 'd'")


def test_paths_may_be_quoted_left_out_or_interpolated() -> None:
    assert resolve(["runs='a b'"]).runs == "a b"
    assert resolve(["results=null"]).results is None
    assert resolve(["runs=x", "results=${runs}/y"]).results == "x/y"
    assert resolve(["++data.root=/tmp/a b"]).data.root == "/tmp/a b"
    assert resolve([r"runs=/tmp/\${x}"]).runs == "/tmp/${x}"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("methods.drl=null", "methods.drl cannot be left out; leave out its rows: experiment.rows.<row>=null"),
        ("methods=null", "cannot be left out; leave out its rows"),
        ("rows.drl=null", "did you mean 'experiment.rows.drl'?"),
        ("~experiment.rows.drl", "write experiment.rows.drl=null to leave it out"),
        ("experiment.rows.dlr=null", "did you mean 'experiment.rows.drl'?"),
        ("methods.cdrl.batchsize=3", "did you mean 'methods.cdrl.batch_size'?"),
        ("method=cdrl", "set methods.cdrl.<key>=…"),
        ("table1", "is not an override; write key=value"),
        ("=x", "is not an override; write key=value"),
        ("", "is not an override; write key=value"),
        ("scale=nanno", "unknown scale 'nanno' (did you mean 'nano'?); there are micro, mini, nano, paper"),
        ("experiment=table2", "unknown experiment 'table2' (did you mean 'table1'?)"),
        ("launcher=null", "unknown launcher 'null'; there are local, ray, slurm"),
        ("+runs=x", "'runs' is there already; write runs=… without the +"),
        (
            "data.root=${nowhere}",
            r"takes its value from ${nowhere}, and 'nowhere' not found; set that, or write \${",
        ),
        ("runs=null", "'runs=null' names no folder"),
        ("experiment.rows.cdrl.label=a (1)", "'experiment.rows.cdrl.label=a (1)' cannot be read"),
        (
            "+experiment.rows.cdrl.evaluate.masks=[half,/tmp/a (1).png]",
            "in quotes of its own, e.g. \"KEY=['a (1)",
        ),
        ("methods.cdrl.chain=null", "chain"),
    ],
)
def test_mistakes_say_what_to_do(override: str, hint: str) -> None:
    assert hint in mistake(override)


def test_what_takes_its_value_from_an_empty_list_is_named() -> None:
    line = ["experiment=chains", "scale.seeds=[]"]
    assert "evaluate.pictured takes its value from ${scale.seeds.0}" in mistake(*line)


def test_a_row_is_left_out() -> None:
    assert resolve(["experiment.rows.drl=null"]).experiment.rows.drl is None


def test_merging_changes_what_there_is_and_nothing_else() -> None:
    base = OmegaConf.create({"chain": {"steps": 5, "twice": "${.steps}"}, "name": "x"})
    assert merged(base, {"chain": {"steps": 7}}, "row 'a'") == {"chain": {"steps": 7, "twice": 7}, "name": "x"}
    assert plain(base)["chain"]["steps"] == 5
    with pytest.raises(UserError, match="row 'a': Key 'stps' is not in struct"):
        merged(base, {"chain": {"stps": 7}}, "row 'a'")


def test_the_text_is_the_configuration() -> None:
    config = resolve(["scale=nano"])
    assert OmegaConf.create(text(config)) == OmegaConf.create(plain(config))


def test_a_digest_names_content_whatever_its_order() -> None:
    assert configuration.digest({"a": 1, "b": [1, 2]}) == configuration.digest({"b": [1, 2], "a": 1})
    assert configuration.digest({"a": 1}) != configuration.digest({"a": 2})
    assert len(configuration.digest({})) == 12


def test_all_is_every_experiment_in_its_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By ``order``, then by name; one may say at which scales it does not belong to all."""
    assert expand(["experiment=table1", "scale=mini"]) == [["experiment=table1", "scale=mini"]]
    commands = expand(["scale=nano", "experiment=all", "device=cpu"])
    assert all(command[0] == "scale=nano" and command[2] == "device=cpu" for command in commands)
    names = [command[1].removeprefix("experiment=") for command in commands]
    assert names == configuration.experiments("nano")
    assert set(names) <= set(configuration.choices("experiment"))

    (tmp_path / "experiment").mkdir()
    for name, facts in {"a": "order: 2", "b": "order: 1", "c": "{order: 1, all: [paper]}"}.items():
        facts = facts if facts.startswith("{") else f"{{{facts}}}"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"experiment: {facts}\n")
    (tmp_path / "scale").mkdir()
    for name in ("nano", "paper"):
        (tmp_path / "scale" / f"{name}.yaml").touch()
    monkeypatch.setattr(configuration, "CONF", tmp_path)
    configuration.manifest.cache_clear()
    try:
        assert configuration.experiments("nano") == ["b", "a"]
        assert expand(["experiment=all", "scale=paper"]) == [[f"experiment={name}", "scale=paper"] for name in "bca"]
    finally:
        configuration.manifest.cache_clear()
