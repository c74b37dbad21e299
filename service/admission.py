"""`Admission`: what cannot be answered in time is refused at once, and never computed late.

One process answers one request after another, on an event loop. Data is read when the loop comes round, so
what is read may have arrived as early as the loop came round before, if it was busy in between; and it is
answered after all that was read before it. A request's wait is therefore known, to the worst, when its turn
comes, and then it is answered or refused.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

_IDLE = 50e-6
"""Seconds without work after which the loop was waiting, and data is read as it arrives."""
_WEIGHT = 0.05
"""Of the newest request in the mean of what requests take."""
_DECAY = 0.01
"""Of the mean, that a refusal takes from it: one long pause would else be waited out by nobody, since what is
refused says nothing of how long it would have taken."""
_MARGIN = 1.2
"""By how much a request may take longer than the mean."""
_SHARE = 0.5
"""Of the time that a request may take, that it may take here: its way, and its wait in the
caller's own queue, cannot be seen from here. A shorter queue answers as many requests as a longer one."""
RETRY_AFTER = 1
"""Seconds after which a caller that was refused may come again."""


class Admission:
    """The queue of one event loop. Moments are of `time.perf_counter`."""

    def __init__(self, permits: int) -> None:
        """An empty queue.

        Args:
            permits: requests that may wait at once, for a pack that is not resident, say.
        """
        self.seconds = 0.0
        """That a request takes, on average."""
        self.waiting = 0
        """Requests that are under way and do not keep the loop busy."""
        self.permits = permits
        """Requests that may wait at once."""
        self._new_round = True
        self._round = self._earliest = self._done = perf_counter()

    def arrival(self) -> float:
        """The earliest moment at which a request may have arrived whose first byte was just read."""
        if self._new_round:
            now = perf_counter()
            self._new_round = False
            self._earliest = now if now - self._done > _IDLE else self._round
            self._round = now
            asyncio.get_running_loop().call_soon(self._turn)
        return self._earliest

    def in_time(self, arrived: float, deadline: float) -> bool:
        """Whether a request can be answered in time whose caller waits for `deadline` seconds."""
        done = perf_counter() + self.seconds * _MARGIN
        return done - arrived <= deadline * _SHARE and not self.full

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return self.waiting >= self.permits

    def answered(self, seconds: float) -> None:
        """A request kept the loop busy for so long."""
        self._done = perf_counter()
        self.seconds += _WEIGHT * (seconds - self.seconds)

    def refused(self) -> None:
        """A request was refused for want of time."""
        self.seconds -= _DECAY * self.seconds

    def _turn(self) -> None:
        self._new_round = True
