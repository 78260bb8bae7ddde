"""Metrics: what a number is called, which direction is better, what it needs, and how it is computed.

A metric is one `Metric`, registered once. Protocols, the scorer, reference statistics, tables, axes and published
numbers all look here. Metrics that compare samples with a reference set are registered in
`experiments.metrics.distances`; what an evaluation computes by itself is in the list below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.metrics.distances import Comparison


@dataclass(frozen=True)
class Metric:
    """One quantity.

    Attributes:
        name: in protocols and in cells.csv.
        title: for people.
        better: "lower", "higher", or "" where neither is.
        bounds: the smallest and the largest value possible; intervals stay between.
        needs: of the samples: "moments" of their features, all "features", class "probabilities", or the "labels" that
            were asked for; "" for what no protocol measures.
        compute: the number, from samples beside a reference set.
        published_as: its name in published.csv.
        published_under: protocols that measure what was published.
    """

    name: str
    title: str
    better: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    needs: str = ""
    compute: Callable[[Comparison], float] | None = None
    published_as: str = ""
    published_under: frozenset[str] = frozenset()

    def axis(self, protocol: str) -> str:
        """Title, protocol and direction: "Fréchet distance (fd-digits) ↓"."""
        arrow = {"lower": "\u00a0↓", "higher": "\u00a0↑"}.get(self.better, "")
        return f"{self.title} ({protocol}){arrow}"


METRICS: dict[str, Metric] = {}


def register(*metrics: Metric) -> None:
    """Make metrics known by their names."""
    METRICS.update({metric.name: metric for metric in metrics})


def metric(name: str) -> Metric:
    """The metric of this name; one without direction and bounds where none is registered."""
    return METRICS.get(name) or Metric(name, name.replace("_", " ").capitalize())


def scored() -> tuple[str, ...]:
    """Names of the metrics that a protocol can measure."""
    return tuple(name for name, metric in METRICS.items() if metric.needs)


def needs_features(names: Iterable[str]) -> bool:
    """Whether any of these metrics compares all features, not their moments alone."""
    return any(METRICS[name].needs == "features" for name in names)


_RATE, _POSITIVE = (0.0, 1.0), (0.0, math.inf)
_RHAT = (0.99, math.inf)
"""Split R\u0302 is 1 for chains that agree, and by chance as low as √(1 − 1/n): 0.99 for half-chains of 51 draws."""
register(
    Metric("step_multiplier", "Step-size multiplier", "", _POSITIVE),
    Metric("auroc", "AUROC", "higher", _RATE, published_as="AUROC", published_under=frozenset({"log-density"})),
    Metric("kl", "KL divergence (nats)", "lower", _POSITIVE),
    Metric("log_likelihood", "Log-likelihood (nats)"),
    Metric("true_log_likelihood", "Log-likelihood of the truth (nats)"),
    Metric("sample_log_density", "Sample log-density under the truth (nats)"),
    Metric("variance_ratio", "Variance of the gradient, ratio", "lower", _POSITIVE),
    Metric("acceptance", "Acceptance rate", "", _RATE),
    Metric("rhat", "Split R\u0302", "", _RHAT),
    Metric("ess", "Effective samples per 1,000 steps of a chain", "", _POSITIVE),
    Metric("energy_drift", "Energy drift (sd)"),
    Metric("known_exact", "Known pixels exact", "", _RATE),
    Metric("hole_mse", "MSE in the hole", "lower", _POSITIVE),
    Metric("hole_mse_best", "MSE, best completion", "lower", _POSITIVE),
    Metric("hole_mse_mean_image", "MSE of the mean image", "", _POSITIVE),
    Metric("agreement", "Classifier agreement", "higher", _RATE),
    Metric("diversity", "Diversity", "", _POSITIVE),
    Metric("all_concepts", "All concepts", "", _RATE),
    Metric("all_concepts_rare", "All concepts, rare combinations", "", _RATE),
    Metric("one_without_other", "One without other", "", _RATE),
    Metric("concept_shown", "Concept shown", "", _RATE),
    Metric("classifier_accuracy", "Classifier accuracy on real images", "", _RATE),
)
