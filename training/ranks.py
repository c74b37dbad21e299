"""`Ranks`: the processes that train one recipe together, as `torchrun` starts them.

They talk through two groups. In the one of the steps everybody is there at the same time, so who is silent
for `SILENCE` is lost. In the patient one a rank may wait for as long as another one evaluates or saves.
A rank that was killed closes its connections, which all others notice at once, whichever group they are in.
Ranks of one host add up what is in the CPU's memory at a blackboard instead.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from service.contract.errors import RunError
from training.blackboard import Blackboard
from training.data.batches import Rows

T = TypeVar("T")
SILENCE = timedelta(seconds=60)
"""After so long without a sign of another rank in a step, a run fails."""
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. As it is by default, there is no other one."""

    rank: int = 0
    size: int = 1
    patient: Any = None
    """The group to wait in; None of a process alone."""
    board: Blackboard | None = None
    """What ranks of one host have besides."""

    @property
    def leads(self) -> bool:
        """Whether it is this one that writes for all."""
        return self.rank == 0

    def share(self, batch: Rows) -> Rows:
        """This rank's rows of a batch: every `size`-th, so that the shares' first tenths are the batch's."""
        if self.size == 1:
            return batch
        return batch.ordered(torch.arange(self.rank, len(batch), self.size, device=batch.label.device))

    def split(self, sizes: Sequence[int]) -> list[int]:
        """Which pieces of work of these sizes are this rank's: the largest goes first, to who has least."""
        loads, own = [0] * self.size, []
        for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
            who = loads.index(min(loads))
            loads[who] += sizes[at]
            if who == self.rank:
                own.append(at)
        return sorted(own)

    def spread(self, rows: Rows, make: Callable[[Rows], Tensor]) -> Tensor:
        """A number for each row (n,), of which every rank makes a part, and all get the whole.

        Args:
            rows: the same n on every rank.
            make: gives the numbers (m,) of some rows, on the CPU.
        """
        if self.size == 1 or len(rows) < self.size:
            return make(rows)
        start, end = (len(rows) * at // self.size for at in (self.rank, self.rank + 1))
        whole = torch.zeros(len(rows))
        whole[start:end] = make(rows[start:end])
        return self.sum([whole], patiently=True)

    def sum(self, parts: Sequence[Tensor], *, patiently: bool = False) -> Tensor:
        """The sum over ranks of what each has, (n,), to the same bits on all of them.

        Args:
            parts: of one type, (n_1,), (n_2,) ...: as many and as long on every rank.
            patiently: whether the others may take their time.
        """
        patience = (_PATIENCE if patiently else SILENCE).total_seconds()
        with self._together():
            if self.board is not None and not parts[0].is_cuda:
                found = self.board.sum(parts, patience)
                if found is not None:
                    return found
            total = torch.cat(list(parts))
            dist.all_reduce(total, group=self.patient if patiently else None)
        return total

    def agreed(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        if isinstance(value, float):
            number = torch.tensor([value if self.leads else 0.0], dtype=torch.float64)
            return cast(T, self.sum([number], patiently=True).item())
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            with self._together():
                dist.barrier(group=self.patient)

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives; rank 0 makes it first, and the others find on the disk what it left there."""
        if not self.leads:
            self.wait()
        made = make()
        if self.leads:
            self.wait()
        return made

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"process {self.rank} of {self.size}: another one has ended, or was silent for "
                f"{SILENCE.total_seconds():.0f} s; the same command goes on from what was saved"
            ) from error


ALONE = Ranks()


@contextmanager
def opened(device: torch.device) -> Iterator[Ranks]:
    """The ranks that `torchrun` started, for the time of the block; this process alone where it did not.

    Args:
        device: where the recipe's model is; of several GPUs, each rank of a host takes its own.

    Raises:
        RunError: there are fewer GPUs than ranks, or the ranks do not find each other.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise RunError(f"process {local} of this host has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=SILENCE)
        all_ranks = Ranks(rank, size, dist.new_group(backend="gloo", timeout=_PATIENCE))
        if os.environ["LOCAL_WORLD_SIZE"] == str(size) and sys.platform == "linux":
            all_ranks = replace(all_ranks, board=Blackboard(rank, size, all_ranks.agreed))
    except (RuntimeError, OSError) as error:
        raise RunError(f"process {rank} of {size} does not find the others: {error}") from error
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield all_ranks
    finally:
        signal.signal(signal.SIGTERM, before)
        if all_ranks.board is not None:
            all_ranks.board.close()
        # What has failed is not closed: NCCL would wait for those who are gone.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _stop(number: int, frame: object) -> None:
    """`torchrun` ends all when one has ended; an exception leaves no temporary files."""
    del number, frame
    raise RunError(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} was told to stop, as torchrun does when "
        "another one has ended; the same command goes on from what was saved"
    )
