"""The speed measurements' logic, rehearsed in seconds: nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl import langevin
from cdrl.cooperative import Cooperative
from cdrl.learner import Learner
from tests.benchmarks import cases
from tests.benchmarks.gpu import __main__ as script
from tests.benchmarks.gpu import speed
from tests.reference import EXACT

CPU = torch.device("cpu")
REHEARSAL = ["--device", "cpu", "--tiny", "--light"]


class TestParts:
    def test_a_finished_part_is_read_and_not_done_again(self, tmp_path: Path) -> None:
        assert speed.part(tmp_path, "one", lambda: {"value": 1}) == {"value": 1}
        assert speed.part(tmp_path, "one", lambda: {"value": 2}) == {"value": 1}

    def test_the_alarm_stops_what_is_under_way(self) -> None:
        with pytest.raises(script.OutOfTime), script.alarm(0.05):
            time.sleep(60)
        with script.alarm(60):
            pass

    def test_one_under_way_is_left_for_the_next_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And one that fails is a line that says so, without taking the others along."""
        calls: list[int] = []

        def fails() -> speed.Lines:
            raise ValueError("no such kernel")

        def slow() -> speed.Lines:
            calls.append(1)
            if len(calls) == 1:
                raise script.OutOfTime
            return [{"seconds": 1.0}]

        monkeypatch.setattr(speed, "plan", lambda *_: {"chain-a": fails, "chain-b": slow})
        arguments = [*REHEARSAL, "--out", str(tmp_path)]
        assert script.main(arguments) == script.UNFINISHED
        assert "the same command" in capsys.readouterr().err
        assert {path.stem for path in tmp_path.glob("*.json")} == {"ceiling", "chain-a"}
        assert script.main(arguments) == 0
        assert {path.stem for path in tmp_path.glob("*.json")} == {"ceiling", "chain-a", "chain-b"}
        assert (tmp_path / "speed.csv").read_text().count("ValueError: no such kernel") == 1

    def test_times_of_two_devices_do_not_mix(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "ceiling.json").write_text(json.dumps({"fp32": 1.0, "device": "another card"}))
        assert script.main([*REHEARSAL, "--out", str(tmp_path)]) == 1
        assert "another card" in capsys.readouterr().err


class TestSpeed:
    def test_replayed_chains_equal_the_plain_reference(self) -> None:
        exact, single = speed.parity(speed.TINY, "replayed", CPU)
        quantities = [f"{name}_{number}" for number in range(2) for name in ("chain", "energy", "initializer")]
        assert list(exact) == list(single) == ["dtype", *quantities, "samples"]
        assert (exact.pop("dtype"), single.pop("dtype")) == ("float64", "float32")
        assert max(exact.values()) < EXACT
        assert single["chain_0"] > exact["chain_0"]

    def test_a_wrong_chain_would_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refine = langevin.refine
        monkeypatch.setattr(langevin, "refine", lambda chain: refine(chain._replace(streams=chain.streams.flip(0))))
        exact, _ = speed.parity(speed.TINY, "replayed", CPU)
        assert min(value for name, value in exact.items() if name != "dtype") > 5e-3

    def test_an_energy_step_the_wrong_way_would_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        descend = Learner.descend

        def ascend(self: Learner, *arguments: int) -> Tensor:
            self.put_gradient(-self.gradient())
            return descend(self, *arguments)

        monkeypatch.setattr(Learner, "descend", ascend)
        exact, _ = speed.parity(speed.TINY, "eager", CPU)
        assert min(exact[name] for name in ("energy_0", "initializer_0", "chain_1", "samples")) > 1e-2

    def test_what_is_timed_walks_as_many_steps_as_it_says(self) -> None:
        assert speed.FULL.size.steps == 15
        method = cases.build(speed.TINY.size)
        assert isinstance(method, Cooperative)
        assert method.settings.chain.steps == speed.TINY.size.steps

    def test_a_chain_has_a_line_for_each_batch_with_its_share_of_the_ceiling(self) -> None:
        ceiling = {"fp32": 1e12}
        lines = speed.chains(speed.TINY, "replayed", "fp32", CPU, ceiling)
        assert [line["batch"] for line in lines] == list(speed.TINY.batches)
        assert lines[1]["flops"] == 2 * lines[0]["flops"] > 0
        for line in lines:
            assert line["ceiling_share"] == pytest.approx(line["flops"] / line["seconds"] / 1e12)

    def test_every_engine_is_held_to_the_reference_and_timed(self) -> None:
        planned_parts = speed.plan(speed.TINY, CPU, {}, light=False)
        for kind in ("parity-replayed", "chain-replayed-bf16", "iteration-replayed-bf16", "sampling-replayed-tf32"):
            assert kind in planned_parts
        assert next(iter(planned_parts)).startswith("parity")

    def test_sizes_of_a_rehearsal_are_small(self) -> None:
        assert speed.TINY.size.energy == cases.SIZES["nano"].energy
        assert max(speed.TINY.batches) <= 4
