"""Recipes: what a configuration may build, and what it builds."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.ddpm import DDPMRecipe
from baselines.short_run import ShortRunRecipe
from cdrl import randomness
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Method
from cdrl.networks import EnergyNet, Initializer
from cdrl.recipe import CooperativeRecipe, ImageShape, Recipe
from experiments import configuration, methods

SHAPE = ImageShape(size=8, channels=1, classes=3)
ENERGY: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "blocks": 1}
INITIALIZER: dict[str, Any] = {"width": 12, "multipliers": [1], "blocks": 1, "dropout": 0.0, "attention_sizes": [4]}
CONFIG: dict[str, Any] = {
    "_target_": "cdrl.recipe.CooperativeRecipe",
    "label": "Small",
    "levels": 3,
    "chain": {"_target_": "cdrl.langevin.Langevin", "steps": 2, "step_variance": 1e-2},
    "energy": ENERGY,
    "initializer": INITIALIZER,
    "optimisation": {"_target_": "cdrl.learner.Optimisation", "learning_rate": 1e-3, "betas": [0.0, 0.9]},
    "batch_size": 4,
}
RECIPES: dict[str, Recipe] = {
    "cdrl": CooperativeRecipe(energy=ENERGY, initializer=INITIALIZER, chain=Langevin(2)),
    "drl": CooperativeRecipe(energy=ENERGY, initializer=None, chain=Langevin(2)),
    "short_run": ShortRunRecipe(energy=ENERGY, steps=2),
    "ddpm": DDPMRecipe(network=INITIALIZER, energy=ENERGY),
}


def weights(method: Method) -> list[torch.Tensor]:
    return [p.detach() for learner in method.learners.values() for p in learner.network.parameters()]


def changed(**settings: Any) -> dict[str, Any]:
    """`CONFIG` with settings, dots as double underscores."""
    config = copy.deepcopy(CONFIG)
    for name, value in settings.items():
        *groups, last = name.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return config


class TestBuild:
    def test_a_configuration_is_the_typed_recipe(self) -> None:
        expected = CooperativeRecipe(
            label="Small",
            levels=3,
            chain=Langevin(2, 1e-2),
            energy=ENERGY,
            initializer=INITIALIZER,
            optimisation=Optimisation(learning_rate=1e-3, betas=[0.0, 0.9]),  # type: ignore[arg-type]
            batch_size=4,
        )
        assert methods.recipe(CONFIG) == expected

    def test_it_is_what_building_by_hand_is(self) -> None:
        method = methods.recipe(CONFIG).build(SHAPE, seed=7, iterations=100)
        sizes = {"image_size": 8, "channels": 1, "classes": 0}
        with randomness.global_generator(randomness.key(7, "initial weights"), torch.device("cpu")):
            energy_net = EnergyNet(**sizes, width=8, multipliers=(1, 2), blocks=1)
            initializer = Initializer(**sizes, width=12, multipliers=(1,), blocks=1, dropout=0.0, attention_sizes=(4,))
        assert isinstance(method, Cooperative)
        assert (method.seed, method.iterations, method.settings.chain.steps) == (7, 100, 2)
        assert method.settings.schedule.levels == 3
        by_hand = [*energy_net.parameters(), *initializer.parameters()]
        assert all(map(torch.equal, weights(method), by_hand))
        assert len(weights(method)) == len(by_hand)

    @pytest.mark.parametrize("name", RECIPES)
    def test_initial_weights_are_a_function_of_the_seed(self, name: str) -> None:
        first = weights(RECIPES[name].build(SHAPE, seed=1))
        torch.manual_seed(123)
        assert all(map(torch.equal, first, weights(RECIPES[name].build(SHAPE, seed=1))))
        assert not all(map(torch.equal, first, weights(RECIPES[name].build(SHAPE, seed=2))))

    @pytest.mark.parametrize("name", RECIPES)
    def test_building_draws_from_no_generator_but_its_own(self, name: str) -> None:
        before = torch.get_rng_state()
        RECIPES[name].build(SHAPE, seed=1)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", RECIPES)
    def test_shapes_alone_take_no_memory(self, name: str) -> None:
        method = RECIPES[name].build(SHAPE, device="meta")
        assert {weight.device.type for weight in weights(method)} == {"meta"}
        assert method.training_cost == RECIPES[name].build(SHAPE).training_cost

    @pytest.mark.parametrize(("conditional", "classes"), [(False, 0), (True, 3)])
    def test_classes_count_only_where_they_are_asked_for(self, conditional: bool, classes: int) -> None:
        method = methods.recipe(changed(conditional=conditional)).build(SHAPE)
        assert isinstance(method, Cooperative)
        assert method.energy_net.classes == classes

    @pytest.mark.parametrize("scale", configuration.choices("scale"))
    def test_every_method_of_the_suite_has_a_recipe(self, scale: str) -> None:
        config = configuration.resolve([f"scale={scale}"])
        for name, method in configuration.plain(config.methods).items():
            assert isinstance(methods.recipe(method), Recipe), name


def executes(command: str) -> list[dict[str, Any]]:
    """Ways to hide a call of the shell in a configuration."""
    call = {"_target_": "os.system", "command": command}
    return [
        call,
        changed(chain=call),
        changed(energy__multipliers=[1, call]),
        changed(energy__multipliers=[1, {"_target_": "os.mkdir", "path": "executed"}]),
        changed(energy__width={"_target_": "subprocess.Popen", "args": command, "shell": True}),
        changed(energy={"_target_": "experiments.files.write_text", "path": "executed", "text": ""}),
        changed(energy=f"${{oc.decode:'{{_target_: os.system, command: {command}}}'}}"),
        changed(energy="${label}", label=call),
        changed(chain={"_target_": "subprocess.CompletedProcess", "args": call, "returncode": 0}),
        changed(chain={"_target_": "builtins.eval", "_args_": [f"__import__('os').system('{command}')"]}),
    ]


@pytest.mark.parametrize("number", range(len(executes(""))))
def test_only_dataclasses_are_made_and_nothing_is_executed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder may come from elsewhere."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        methods.recipe(executes("touch executed")[number]).build(SHAPE)
    assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)


def one_line(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        act()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "nowhere.Nothing"}, "'nowhere.Nothing' names no dataclass"),
        ({"_target_": "cdrl.recipe"}, "'cdrl.recipe' names no dataclass"),
        ({"_target_": "cdrl.cooperative.Settings"}, "Settings.* unexpected keyword"),
        ({"chain__typo": 1}, "unexpected keyword argument 'typo'"),
        ({"typo": 1}, "unexpected keyword argument 'typo'"),
        ({"chain__steps": "many"}, "not supported between"),
        ({"chain__step_variance": -1.0}, "step_variance"),
        ({"optimisation__learning_rate": 0.0}, "learning_rate must be positive"),
        ({"optimisation__betas": [0.9, 1.0]}, "betas"),
    ],
)
def test_settings_of_the_wrong_kind_are_one_line(settings: dict[str, Any], message: str) -> None:
    assert re.search(message, one_line(lambda: methods.recipe(changed(**settings))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "at least one transition"),
        ({"levels": "six"}, "Small"),
        ({"schedule": "steep"}, "unknown schedule 'steep'; choose one of"),
        ({"last_denoise": "twice"}, "unknown last_denoise 'twice'"),
        ({"label_dropout": 2}, "label_dropout must be 0 … 1"),
        ({"energy": None}, "Small"),
        ({"optimisation": None}, "Small"),
        ({"energy__width": "wide"}, "width must be a whole number"),
        ({"energy__widht": 8}, "unexpected keyword argument 'widht'"),
        ({"energy__multipliers": [1, 1, 1, 1, 1]}, "cannot be halved"),
        ({"energy__width": 20_000}, "about"),
        ({"energy__blocks": 10**7}, "blocks must be"),
        ({"levels": 10**9}, "room for 10000 transitions"),
        ({"levels": 10**400}, "room for 10000 transitions"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2**70}, "batch_size must be"),
        ({"shards": 2**70}, "equal shards"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings: dict[str, Any], message: str) -> None:
    assert message in one_line(lambda: methods.recipe(changed(**settings)).build(SHAPE))


def test_another_dataclass_is_no_recipe() -> None:
    assert "must name a recipe" in one_line(lambda: methods.recipe({"_target_": "cdrl.langevin.Langevin"}))


@pytest.mark.parametrize("images", ["real", "noise"])
def test_a_reference_row_has_nothing_to_build(images: str) -> None:
    reference = methods.recipe({"_target_": "experiments.methods.Reference", "images": images})
    assert not reference.trains
    assert "nothing to train" in one_line(lambda: reference.build(SHAPE))
    assert "real or noise" in one_line(lambda: methods.Reference(images="other"))
