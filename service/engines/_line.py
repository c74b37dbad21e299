"""`Line`: requests that stand in line for one thread, which answers as many at once as fit together.

What fails there lets go of its locals at once: an error that somebody keeps must not keep sessions and memory
of the device.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import perf_counter
from traceback import clear_frames
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from service.engines._patience import Patience
from service.engines._protocol import Arrays

_PASSED = 64
"""Jobs that others may be preferred to, at a time."""
T = TypeVar("T")
Logit = npt.NDArray[np.float32]
Asking = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Logit]"]


@dataclass(eq=False, slots=True)
class Job:
    """One request."""

    inputs: Arrays
    pack: Any
    """Its handle."""
    arrays: Sequence[npt.NDArray[Any]]
    """The pack's."""
    tables: Mapping[str, npt.NDArray[Any]] | None
    """Of items, that `inputs` has rows of."""
    count: int
    """Candidates."""
    pieces: int
    edition: int = 0
    logit: Logit | None = None
    error: BaseException | None = None
    done: threading.Event | None = None
    asking: Asking | None = None

    def __post_init__(self) -> None:
        if self.tables:
            self.edition = id(next(iter(self.tables.values())))


@dataclass(eq=False, slots=True)
class Batch:
    """Jobs for one launch."""

    jobs: list[Job]
    pieces: int

    def add(self, job: Job) -> None:
        """One more."""
        self.jobs.append(job)
        self.pieces += job.pieces


@dataclass(eq=False)
class Task(Generic[T]):
    """Something else for the thread to do."""

    work: Callable[[], T]
    done: threading.Event = field(default_factory=threading.Event)
    result: T | None = None
    error: BaseException | None = None

    def __call__(self) -> None:
        """Do it."""
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            clear_frames(error.__traceback__)
            self.error = error
        finally:
            self.done.set()


class Line:
    """A thread, and what it is asked for, oldest first."""

    def __init__(
        self,
        answer: Callable[[Sequence[Job]], None],
        fits: Callable[[Batch, Job], bool],
        patience: Patience,
        *,
        mixed: bool,
    ) -> None:
        """Start the thread.

        Args:
            answer: gives each of some jobs its logit.
            fits: whether a job can be answered together with others.
            patience: how long to wait for more.
            mixed: whether jobs are answered together at all.
        """
        self._answer, self._fits, self._patience, self._mixed = answer, fits, patience, mixed
        self._queue: SimpleQueue[Job | Task[Any] | None] = SimpleQueue()
        self._waiting: deque[Job | Task[Any] | None] = deque()
        self._closed, self._ending = False, threading.Lock()
        self.launches = self.jobs = 0
        """How many there were."""
        self._thread = threading.Thread(target=self._run, name="mdctr-gpu", daemon=True)
        self._thread.start()

    def ask(self, job: Job) -> Logit:
        """Stand in line, and wait for the answer.

        Raises:
            ValueError: the line is closed.
        """
        job.done = threading.Event()
        self._put(job)
        job.done.wait()
        if job.error is not None:
            raise job.error
        assert job.logit is not None  # noqa: S101 - for the type
        return job.logit

    def submit(self, job: Job) -> asyncio.Future[Logit]:
        """Stand in line; the future is this event loop's."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Logit] = loop.create_future()
        job.asking = loop, future
        self._put(job)
        return future

    def do(self, work: Callable[[], T]) -> T:
        """Have the thread do something, and wait for it."""
        task = Task(work)
        self._put(task)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]

    def later(self, work: Callable[[], object]) -> None:
        """Have the thread do something after what was asked before."""
        with self._ending:
            if not self._closed:
                self._queue.put(Task(work))

    def close(self) -> None:
        """End the thread after what was asked before."""
        with self._ending:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _put(self, asked: Job | Task[Any]) -> None:
        with self._ending:  # what came behind the end would never be answered
            if self._closed:
                raise ValueError("the engine is closed; its handles were released")
            self._queue.put(asked)

    def _run(self) -> None:
        while True:
            self._take()
            head = self._waiting.popleft()
            if head is None:
                return
            if isinstance(head, Task):
                head()
                continue
            together = Batch([head], head.pieces)
            if self._mixed:
                self._gather(together)
            jobs = together.jobs
            try:
                self._answer(jobs)
            except BaseException as error:  # noqa: BLE001 - whoever asked raises it
                clear_frames(error.__traceback__)
                for job in jobs:
                    job.error = error
            self.launches += 1
            self.jobs += len(jobs)
            self._patience.launched(len(jobs))
            _deliver(jobs)

    def _take(self) -> None:
        """What has come in; at least one."""
        if not self._waiting:
            self._waiting.append(self._queue.get())
        while True:
            try:
                self._waiting.append(self._queue.get_nowait())
            except Empty:
                return

    def _gather(self, together: Batch) -> None:
        """Those that go with the first, as they stand in line, and those that are expected."""
        until = None
        while True:
            if not self._join(together):
                return
            seconds = self._patience.seconds(len(together.jobs))
            if not seconds:
                return
            now = perf_counter()
            until = until or now + seconds
            try:
                self._waiting.append(
                    self._queue.get(timeout=until - now) if until > now else self._queue.get_nowait()
                )
            except Empty:
                return
            self._take()

    def _join(self, together: Batch) -> bool:
        """Take those out of the line that go with the first; whether more could.

        Others keep their places, and nobody overtakes a task.
        """
        left: deque[Job | Task[Any] | None] = deque()
        while self._waiting:
            following = self._waiting.popleft()
            if isinstance(following, Job) and self._fits(together, following):
                together.add(following)
                continue
            left.append(following)
            if not isinstance(following, Job) or len(left) >= _PASSED:
                left.extend(self._waiting)
                self._waiting = left
                return False
        self._waiting = left
        return not left


def _deliver(jobs: Sequence[Job]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.done is not None:
            job.done.set()
        elif job.asking is not None:
            loops.setdefault(job.asking[0], []).append(job)
    for loop, some in loops.items():
        with suppress(RuntimeError):  # it was closed, and nobody waits there any more
            loop.call_soon_threadsafe(_resolve, some)


def _resolve(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.asking is None:
            continue
        _, future = job.asking
        if future.done():  # whoever asked does not wait any more
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.logit)  # type: ignore[arg-type]
