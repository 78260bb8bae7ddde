"""Inception Score: exp E_x KL(p(c | x) ‖ p(c)), how sure and how varied a classifier's verdicts are.

Salimans et al., "Improved techniques for training GANs" (2016).
"""

from __future__ import annotations

import torch
from torch import Tensor

SPLITS = 10


def inception_score(probabilities: Tensor, splits: int = SPLITS, seed: int = 0) -> float:
    """Mean over ``splits`` equal parts of the score of each part.

    Args:
        probabilities: (n, C), rows sum to 1.
        seed: of the shuffle before splitting, without which samples drawn class by class would score far too low.
    """
    order = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(seed))
    rows = probabilities[order.to(probabilities.device)].double()
    parts = rows.tensor_split(min(splits, len(rows)))
    return float(torch.stack([_score(part) for part in parts]).mean())


def _score(probabilities: Tensor) -> Tensor:
    """exp of (entropy of the mean − mean of the entropies)."""
    marginal = probabilities.mean(dim=0)
    return (_entropy(marginal) - _entropy(probabilities).mean()).exp()


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
