"""Scoring images: extractors, metrics, protocols.

A number is defined by its `Protocol`; a `Scorer` turns a stream of images into the protocol's metrics. Images are
pixels 0 … 255, NHWC: uint8, or float32 where the protocol does not round.
"""

from experiments.metrics.distances import Comparison, auroc, inception_score, kernel_distance, precision_recall
from experiments.metrics.extractors import Extracted, Extractor, build
from experiments.metrics.frechet import Moments, frechet_distance
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import Statistics
from experiments.metrics.registry import METRICS, Metric, metric, register
from experiments.metrics.score import Scorer, to_pixels

__all__ = ["METRICS", "Comparison", "Extracted", "Extractor", "Metric", "Moments", "Protocol", "Scorer", "Statistics"]
__all__ += ["auroc", "build", "frechet_distance", "inception_score", "kernel_distance", "metric", "precision_recall"]
__all__ += ["register", "to_pixels"]
