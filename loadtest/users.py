"""`Users`: a simulated population.

They differ in how much they do and in how often they click, so clicks of one user are alike; both are normal
on the log and the logit scale. A day's impressions of a user are Poisson, and each is clicked by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Users:
    """A population."""

    click_rate: float = 0.08
    """Of a user in the middle."""
    click_spread: float = 0.6
    """Standard deviation of the logit."""
    impressions: float = 2.0
    """A day, of a user in the middle."""
    impressions_spread: float = 0.8
    """Standard deviation of the logarithm."""
    together: float = -0.3
    """Correlation of the two: who sees more clicks less of it."""

    def clicks(
        self, random: np.random.Generator, units: int, days: int, lift: float = 0.0, every: int = 1
    ) -> tuple[Ints, Ints]:
        """Clicks and impressions (days / every, units), of all days up to each `every`th.

        What is clicked of Poisson impressions, and what is not, are independent Poisson numbers.

        Args:
            random: where chance comes from.
            units: how many users are drawn.
            days: how long.
            lift: relative change of every user's probability to click.
            every: how many days are drawn at once.
        """
        seen, own = self.draw(random, units)
        seen, rate = every * seen, np.minimum((1 + lift) * own, 1.0)
        clicked, missed = (
            random.poisson(seen * part, (days // every, units)).cumsum(0) for part in (rate, 1 - rate)
        )
        return clicked, clicked + missed

    def draw(self, random: np.random.Generator, units: int) -> tuple[Floats, Floats]:
        """Of so many users, (units,) expected impressions a day and (units,) probabilities to click."""
        one, other = random.standard_normal((2, units))
        logit = np.log(self.click_rate / (1 - self.click_rate)) + self.click_spread * one
        tied = self.together * one + np.sqrt(1 - self.together**2) * other
        return self.impressions * np.exp(self.impressions_spread * tied), 1 / (1 + np.exp(-logit))
