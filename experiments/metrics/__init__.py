"""How images are scored: extractors, statistics, protocols.

A number is defined by its `Protocol`; a `Scorer` turns a stream of images into the protocol's metrics. Images are
pixels 0 … 255, NHWC: uint8, or float32 where the protocol does not round.
"""

from __future__ import annotations

from experiments.metrics.detection import auroc
from experiments.metrics.extractors import Extracted, Extractor, build
from experiments.metrics.frechet import Moments, frechet_distance
from experiments.metrics.inception_score import inception_score
from experiments.metrics.kernel import kernel_distance
from experiments.metrics.manifold import precision_recall
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import Statistics
from experiments.metrics.score import Scorer, to_pixels

__all__ = [
    "Extracted",
    "Extractor",
    "Moments",
    "Protocol",
    "Scorer",
    "Statistics",
    "auroc",
    "build",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "to_pixels",
]
