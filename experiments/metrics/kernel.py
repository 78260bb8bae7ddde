"""Kernel distance (KID): the unbiased squared MMD with the kernel (x·y / d + 1)³, averaged over random subsets.

Bińkowski et al., "Demystifying MMD GANs" (2018). Computed by torch-fidelity, in float64.
"""

from __future__ import annotations

from torch import Tensor

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(
    samples: Tensor, reference: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> float:
    """KID between two sets of features. Zero on average, so possibly negative, when both have one distribution.

    Args:
        samples, reference: (n, d) and (m, d).
        subset_size: rows drawn from each side for a subset, without replacement; at most min(n, m) are.

    Raises:
        ValueError: with fewer than two rows on a side.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(subset_size, len(samples), len(reference))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least two rows a side, not {size}")
    result = kid_features_to_metric(
        samples.double(),
        reference.double(),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return float(result[KEY_METRIC_KID_MEAN])
