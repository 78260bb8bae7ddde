"""Precision and recall over manifolds: unions of balls that reach each point's k-th nearest neighbour.

Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (2019), k = 3. As there,
both sides have equally many points. Distances are computed by torch-fidelity, in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3
_BLOCK = 2000  # rows of the distance matrix held at a time


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, seed: int = 0
) -> tuple[float, float]:
    """Shares of samples on the reference's manifold (precision), and of reference points on the samples' (recall).

    Args:
        samples, reference: features (n, d) and (m, d); of the larger set a random min(n, m) are used.
        neighbours: k; fewer when a set has no more than k points.

    Raises:
        ValueError: with fewer than two rows on a side.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    size = min(len(samples), len(reference))
    if size < 2:
        raise ValueError(f"precision and recall need at least two rows a side, not {size}")
    sides = [_random_rows(side, size, seed).to(samples.device) for side in (samples, reference)]
    precision, recall = calculate_precision_recall_part(*sides, min(neighbours, size - 1), _BLOCK)
    return float(precision), float(recall)


def _random_rows(rows: Tensor, count: int, seed: int) -> Tensor:
    """``count`` rows at random (the same for the same seed); all of them in order when there are no more."""
    if len(rows) == count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return rows[chosen.to(rows.device)]
