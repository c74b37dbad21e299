"""M/D/1: what a server without any noise would make wait.

Requests come independently of each other (Poisson), each takes the same time, and one server answers them in
their order. Whatever a real server's waits are above these is its own doing: collections, other work, locks.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import numpy.typing as npt


def mean_wait(rate: float, service: float) -> float:
    """Seconds before service begins, on average (Pollaczek and Khinchine).

    Args:
        rate: arrivals a second.
        service: seconds that each takes.
    """
    load = _load(rate, service)
    return load * service / (2 * (1 - load))


def waits_at_most(seconds: float, rate: float, service: float) -> float:
    """The share of requests whose wait is at most `seconds` (Erlang 1909, Crommelin 1932).

    P(W <= t) = (1 - rho) * sum over k from 0 to floor(t / D) of (-x)^k / k! * exp(x), x = lambda * (t - k D).
    The terms alternate and grow with t, so they are added with as many digits as they have.
    """
    load = _load(rate, service)
    if seconds < 0:
        return 0.0
    with localcontext() as context:
        context.prec = 30 + int(rate * seconds)
        total = Decimal(0)
        for k in range(int(seconds / service) + 1):
            x = Decimal(rate) * (Decimal(seconds) - k * Decimal(service))
            if x >= 0:
                total += (-x) ** k / math.factorial(k) * x.exp() if k else x.exp()
        return float((1 - Decimal(load)) * total)


def wait_quantile(share: float, rate: float, service: float) -> float:
    """Seconds that so large a share of the requests waits at most."""
    if waits_at_most(0.0, rate, service) >= share:
        return 0.0
    low, high = 0.0, service
    while waits_at_most(high, rate, service) < share:
        low, high = high, 2 * high
    while high - low > 1e-6 * service:
        middle = (low + high) / 2
        low, high = (middle, high) if waits_at_most(middle, rate, service) < share else (low, middle)
    return high


def waits(due: npt.NDArray[np.float64], service: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Waits (n,) of requests due (n,) that take (n,) seconds, one server after another (Lindley 1952)."""
    found = np.zeros(len(due))
    for at in range(1, len(due)):
        found[at] = max(0.0, found[at - 1] + service[at - 1] - (due[at] - due[at - 1]))
    return found


def _load(rate: float, service: float) -> float:
    load = rate * service
    if not 0 < load < 1:
        raise ValueError(f"a load of {load:.2f} is no queue that ends")
    return load
