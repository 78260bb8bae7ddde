"""Scoring images: extractors, metrics, protocols.

A number is defined by its `Protocol`; a `Scorer` turns a stream of images into the protocol's metrics. Images are
pixels 0 … 255, NHWC: uint8, or float32 where the protocol does not round.
"""

from experiments.metrics.distances import Moments, auroc, frechet_distance, inception_score, kernel_distance
from experiments.metrics.extractors import Extracted, Extractor, build
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import Statistics
from experiments.metrics.registry import METRICS, Metric, metric
from experiments.metrics.score import Scorer, to_pixels

__all__ = ["METRICS", "Extracted", "Extractor", "Metric", "Moments", "Protocol", "Scorer", "Statistics", "auroc"]
__all__ += ["build", "frechet_distance", "inception_score", "kernel_distance", "metric", "to_pixels"]
