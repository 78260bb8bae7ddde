"""Conditions: guidance and composition are the linear combinations that they claim to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cdrl import conditions
from cdrl.conditions import Condition
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.networks import EnergyNet
from tests.reference import EXACT

LABELS = torch.tensor([1, 2, 3, 3])
NONE = torch.zeros_like(LABELS)


@pytest.mark.parametrize(
    ("condition", "terms"),
    [
        (conditions.unconditional(), [(1.0, NONE)]),
        (conditions.labelled(LABELS), [(1.0, LABELS)]),
        (conditions.guided(LABELS, 0.0), [(1.0, LABELS)]),
        (conditions.guided(LABELS, 2.5), [(3.5, LABELS), (-2.5, NONE)]),
        (conditions.composed([[1] * 4, [2] * 4], (0.0, 1.0)), [(1.0, NONE + 2)]),
        (conditions.composed([[1] * 4, [2] * 4], (3.0, -1.0)), [(-1.0, NONE), (3.0, NONE + 1), (-1.0, NONE + 2)]),
    ],
)
def test_combined_energy_and_gradient(condition: Condition, terms: list[tuple[float, torch.Tensor]]) -> None:
    net = EnergyNet(8, 1, 4, (1, 2), 1, classes=3).double()
    torch.nn.init.normal_(net.embed_label.bias)  # type: ignore[union-attr]
    y, logsnr = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.linspace(-2, 2, 4, dtype=torch.float64)
    here = condition.batch(torch.arange(4), "cpu")
    energy = net.frozen(net.weights(), logsnr.repeat(len(here.weights)), here.labels.flatten(), here.mix(y.dtype))
    expected = sum(w * net(y, logsnr, label) for w, label in terms)
    torch.testing.assert_close(energy(y), expected, rtol=EXACT, atol=EXACT)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(sum(w * net(y, logsnr, label) for w, label in terms).sum(), y)
    torch.testing.assert_close(energy.gradient(y), gradient, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    "condition",
    [
        conditions.unconditional(),
        conditions.labelled([1, 2]),
        conditions.guided([1, 2], 1.7),
        conditions.composed([[1, 1], [2, 3], [3, 1]], (3.0, 3.0, -1.0)),
    ],
)
def test_weights_sum_to_one(condition: Condition) -> None:
    assert sum(condition.weights) == pytest.approx(1.0)


def test_a_concept_with_weight_zero_changes_nothing(cooperative: Callable[..., Cooperative]) -> None:
    sampler = cooperative(classes=3).sampler()
    index = torch.arange(3)
    alone = sampler(index, 0, conditions.composed([[1, 1, 1]], (2.0,)))
    beside = sampler(index, 0, conditions.composed([[1, 1, 1], [2, 2, 2]], (2.0, 0.0)))
    assert torch.equal(alone, beside)


def test_composition_of_one_concept_is_guidance(cooperative: Callable[..., Cooperative]) -> None:
    sampler = cooperative(classes=3, dtype=torch.float64).sampler()
    index = torch.arange(3)
    guided = sampler(index, 0, conditions.guided([1, 2, 3], 1.5))
    composed = sampler(index, 0, conditions.composed([[1, 2, 3]], (2.5,)))
    torch.testing.assert_close(guided, composed, rtol=0, atol=EXACT)


def test_batches_pick_rows_or_share_one() -> None:
    image, mask = torch.rand(4, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    picked = conditions.guided(LABELS, 1.0).inpainting(image, mask).batch(torch.tensor([3, 0]), "cpu")
    assert picked.labels.tolist() == [[3, 1], [0, 0]]
    assert picked.image is not None
    assert torch.equal(picked.image, image[[3, 0]])
    assert picked.mask is not None
    assert picked.mask.shape == (1, 1, 2, 2)
    assert conditions.unconditional().batch(torch.tensor([7, 9]), "cpu").labels.tolist() == [[0, 0]]


IMAGE, MASK = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Condition(torch.tensor([1, 2])),
        lambda: Condition(torch.tensor([[1, 2]]), (0.5, 0.5)),
        lambda: conditions.composed([[1, 2]], (1.0, 2.0)),
        lambda: conditions.guided([1, 2], -0.1),
        lambda: conditions.guided([1, 2], float("nan")),
        lambda: conditions.labelled([1, 2]).check_classes(0),
        lambda: conditions.labelled([1, 2]).check_classes(1),
        lambda: Condition(torch.tensor([[0]]), image=IMAGE),
        lambda: Condition(torch.tensor([[0]]), image=IMAGE, mask=MASK[0]),
        lambda: Condition(torch.tensor([[0]]), image=IMAGE, mask=MASK.float()),
        lambda: Condition(torch.tensor([[0]]), image=IMAGE, mask=MASK, repeats=-1),
        lambda: Condition(torch.tensor([[0]]), image=IMAGE, mask=MASK, repeats=10**9),
        lambda: conditions.guided([1, 2], 1e20),
        lambda: conditions.labelled([2**70]),
        lambda: conditions.labelled(["cat"]),  # type: ignore[list-item]
        lambda: conditions.composed([[1, 2], [3]], (1.0, 1.0)),
        lambda: conditions.labelled([1, 2]).batch(torch.tensor([2]), "cpu"),
        lambda: conditions.labelled([1, 2]).check_rows(3),
        lambda: conditions.labelled(torch.tensor([1.0, 2.0])),
        lambda: conditions.unconditional().inpainting(IMAGE, MASK).check_pixels((1, 4, 4)),
        lambda: conditions.unconditional().inpainting(IMAGE, MASK).check_pixels((3, 2, 2)),
        lambda: conditions.unconditional().inpainting(IMAGE + 255, MASK).check_pixels((1, 2, 2)),
        lambda: conditions.unconditional().inpainting(IMAGE.byte(), MASK).check_pixels((1, 2, 2)),
    ],
)
def test_impossible_conditions_are_refused(make: Callable[[], Condition]) -> None:
    with pytest.raises(UserError):
        make()
