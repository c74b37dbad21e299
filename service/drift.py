"""`Drift`: what is measured of answers and events so that a drift of scores, features or clicks is seen.

A request takes a fraction of a millisecond, so it only adds to plain numbers here; every second, and when
they are asked for, those become metrics. Scores are measured of a sample.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Histogram

EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Of a probability."""
_STRIDE = 7919
"""From one candidate that is measured to the next, modulo how many there are; a prime beyond all counts."""


class Drift:
    """Scores by domain, values by field, and clicks beside predictions."""

    def __init__(self, registry: CollectorRegistry, label: Callable[[str], str]) -> None:
        """Nothing is measured yet.

        Args:
            registry: where the metrics are.
            label: of a domain, from a closed set.
        """
        self._scores = Histogram(
            "mdctr_scores",
            "Probabilities that were answered, of a sample.",
            ["domain"],
            buckets=EDGES,
            registry=registry,
        )
        self._values = Counter("mdctr_values", "Values that were looked up.", ["field"], registry=registry)
        self._unknown = Counter(
            "mdctr_unknown_values", "Values that the model has never seen.", ["field"], registry=registry
        )
        self._shown = Counter(
            "mdctr_shown", "Items shown whose probability was told.", ["domain"], registry=registry
        )
        self._probability = Counter(
            "mdctr_shown_probability", "Sum of those probabilities.", ["domain"], registry=registry
        )
        self._variance = Counter(
            "mdctr_shown_variance", "Sum of p (1 - p) of those.", ["domain"], registry=registry
        )
        self._clicked = Counter(
            "mdctr_clicked", "Clicks whose probability was told.", ["domain"], registry=registry
        )
        self._label = label
        self._looked_up: dict[str, int] = {}
        self._strange: dict[str, int] = {}
        self._histograms: dict[str, Histogram] = {}
        self._at = 0

    def looked_up(self, values: Mapping[str, int], unknown: Mapping[str, int]) -> None:
        """Add up the values of one request.

        Args:
            values: by field, how many were looked up.
            unknown: by field, how many of those the model has never seen.
        """
        known = self._looked_up
        for field, count in values.items():
            known[field] = known.get(field, 0) + count
        for field, count in unknown.items():
            if count:
                self._strange[field] = self._strange.get(field, 0) + count

    def scored(self, domain: str, probabilities: npt.NDArray[np.float64]) -> None:
        """Measure one score of a ranking, (B,), of those that are measured at all.

        Scores of one request resemble each other: one of many requests says more than many of a few.
        """
        label = self._label(domain)
        histogram = self._histograms.get(label)
        if histogram is None:
            histogram = self._histograms[label] = self._scores.labels(label)
        self._at += _STRIDE
        histogram.observe(probabilities[self._at % len(probabilities)])

    def told(self, shown: Iterable[tuple[str, float]], clicked: Iterable[str]) -> None:
        """Count events that say which probability the answer gave.

        Args:
            shown: domain and probability of items that were shown.
            clicked: domains of clicks.
        """
        sums: dict[str, tuple[int, float, float]] = {}
        for domain, p in shown:
            items, probability, variance = sums.get(domain, (0, 0.0, 0.0))
            sums[domain] = items + 1, probability + p, variance + p * (1 - p)
        for domain, (items, probability, variance) in sums.items():
            label = self._label(domain)
            self._shown.labels(label).inc(items)
            self._probability.labels(label).inc(probability)
            self._variance.labels(label).inc(variance)
        for domain, clicks in Counts(clicked).items():
            self._clicked.labels(self._label(domain)).inc(clicks)

    def count(self) -> None:
        """Let what was added up since the last time be seen."""
        for counter, counts in ((self._values, self._looked_up), (self._unknown, self._strange)):
            for field, count in counts.items():
                counter.labels(field).inc(count)
            counts.clear()
