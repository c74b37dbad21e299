"""`Patience`: how many requests to wait for before a launch."""

from __future__ import annotations

_WEIGHT = 0.25
"""Of the last launch, against all before it."""


class Patience:
    """As many as came together lately are expected again, for a bounded time.

    Whoever asks alone never waits, since one is all that was expected. Under load a launch fills by itself
    while the one before it runs; then only those are waited for whose answers have just gone out, and who ask
    again within microseconds.
    """

    def __init__(self, most: float) -> None:
        """Expect one.

        Args:
            most: seconds; 0 for never.
        """
        self.most = most
        self.expected = 1.0

    def launched(self, requests: int) -> None:
        """Take note of a launch."""
        self.expected += _WEIGHT * (requests - self.expected)

    def seconds(self, waiting: int) -> float:
        """How long to wait for one more, now that so many are there."""
        return self.most if waiting + 0.5 < self.expected else 0.0
