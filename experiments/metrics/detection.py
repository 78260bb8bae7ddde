"""Out-of-distribution detection: how well a score separates two sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Chance that a random inside point scores above a random outside point (ties count one half).

    Args:
        inside: (n,) scores, such as log densities, of in-distribution images.
        outside: (m,) scores of the other images.
    """
    from sklearn.metrics import roc_auc_score

    scores = [np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)]
    return float(roc_auc_score(np.repeat([1, 0], [len(side) for side in scores]), np.concatenate(scores)))
