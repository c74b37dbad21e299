"""Arms to judge, made of numbers."""

from __future__ import annotations

import numpy as np

from service.experiments.guardrail import Measured


def measured(units: int = 2000, *, clicks=None, failed=None, predicted=None, slow=None) -> Measured:
    """An arm whose units each saw ten items in ten requests; by default one click each and nothing wrong."""
    ones = np.ones(units)
    return Measured(
        requests=10 * ones,
        failed=0 * ones if failed is None else np.asarray(failed),
        impressions=10 * ones,
        clicks=ones if clicks is None else np.asarray(clicks),
        predicted=ones if predicted is None else np.asarray(predicted),
        slow={} if slow is None else slow,
    )
