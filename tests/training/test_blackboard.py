"""A blackboard between threads, each of which is a rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, current_thread
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from training.blackboard import Blackboard

T = TypeVar("T")


def at_once(size: int, work: Callable[[Blackboard], T]) -> list[T]:
    """What so many ranks do, by rank."""
    here, said = Barrier(size), [""]

    def rank(at: int) -> T:
        def agreed(value: str) -> str:
            if not at:
                said[0] = value
            here.wait(10)
            found = said[0]
            here.wait(10)
            return found

        board = Blackboard(at, size, agreed)
        try:
            return work(board)
        finally:
            board.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_all_have_the_same_sum_of_tensors_that_grow(size: int) -> None:
    def parts(rank: int, turn: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(10 * turn + rank)
        return [torch.randn(n, generator=generator) for n in (1, 7_000 * turn)]

    def work(board: Blackboard) -> list[Tensor]:
        found = [board.sum(parts(board.rank, turn), 10.0) for turn in (1, 1, 2, 9, 3)]
        found.append(board.sum([torch.tensor([0.1 * board.rank], dtype=torch.float64)], 10.0))
        folders.append(board.folder)
        all_done.wait(10)
        left.extend(board.folder.iterdir())
        all_done.wait(10)
        return [each for each in found if each is not None]

    all_done = Barrier(size)
    left: list[Path] = []
    folders: list[Path] = []
    every = at_once(size, work)
    assert not left  # and so there is no memory to free when all are killed
    assert not any(folder.exists() for folder in folders)
    assert all(torch.equal(a, b) for each in every[1:] for a, b in zip(every[0], each, strict=True))
    for turn, total in zip((1, 1, 2, 9, 3), every[0][:-1], strict=True):
        torch.testing.assert_close(
            total, torch.stack([torch.cat(parts(rank, turn)) for rank in range(size)]).sum(0)
        )
    assert every[0][-1].item() == sum(0.1 * rank for rank in range(size))


def test_where_one_has_no_memory_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.posix_fallocate
    short: list[str] = []

    def allocate(file: int, start: int, size: int) -> None:
        if current_thread().name in short:
            raise OSError(28, "No space left on device")
        original(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)

    def work(board: Blackboard) -> list[bool]:
        fitted = board.sum([torch.ones(3)], 10.0) is not None
        if board.rank:
            short.append(current_thread().name)
        return [fitted, *(board.sum([torch.ones(100_000)], 10.0) is not None for _ in range(2))]

    assert at_once(2, work) == [[True, False, False]] * 2


def test_who_is_gone_or_silent_is_noticed() -> None:
    def work(board: Blackboard) -> str:
        board.sum([torch.ones(3)], 10.0)
        if board.rank == 1:
            return "gone"
        with pytest.raises(ConnectionError):
            board.sum([torch.ones(3)], 10.0)
        return "noticed"

    assert at_once(2, work) == ["noticed", "gone"]

    here = Barrier(2)

    def waits(board: Blackboard) -> None:
        if not board.rank:
            with pytest.raises(TimeoutError):
                board.sum([torch.ones(3)], 0.1)
        here.wait(10)

    at_once(2, waits)
