"""Swing against the sum over pairs of users, as eq. 2 prints it, and by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from training import swing
from training.swing import Bools, Floats, similarity, visits


def brute(visited: Bools, alpha: float) -> Floats:
    users, domains = visited.shape
    found = np.zeros((domains, domains))
    for i in range(domains):
        for j in set(range(domains)) - {i}:
            both = [user for user in range(users) if visited[user, i] and visited[user, j]]
            for one in both:
                for other in set(both) - {one}:
                    weight = (visited[one].sum() * visited[other].sum()) ** -0.5
                    found[i, j] += weight / (alpha + (visited[one] & visited[other]).sum())
    top = found.max(1, keepdims=True)
    return found / np.where(top > 0, top, 1)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("domains", "share"), [(2, 0.5), (5, 0.4), (5, 0.9), (9, 0.2)])
@pytest.mark.parametrize("way", ["_by_pairs", "_by_sets"])
def test_it_is_the_sum_over_pairs_of_users(
    domains: int, share: float, alpha: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either way, whichever the sizes would choose."""
    chosen = getattr(swing, way)
    monkeypatch.setattr(swing, "_by_pairs", chosen)
    monkeypatch.setattr(swing, "_by_sets", chosen)
    monkeypatch.setattr(swing, "_BLOCK", 20)
    visited = np.random.default_rng(0).random((50, domains)) < share
    np.testing.assert_allclose(similarity(visited, alpha), brute(visited, alpha), atol=1e-12)


def test_by_hand() -> None:
    """Two users of a and b give 2 (1/2) / 3 = 1/3; one of all three domains, with them, more.

    w_u = 1/sqrt(2) for the first two, 1/sqrt(3) for the third. Sim(a, b) = 2 / 2 / (1 + 2), and four ordered
    pairs with the third user, 4 / sqrt(6) / (1 + 2). Nobody else is in c, so nothing is like it.
    """
    visited = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    total = 1 / 3 + 4 / np.sqrt(6) / 3
    assert total == pytest.approx(float(brute_total(visited)))
    np.testing.assert_allclose(similarity(visited), [[0, 1, 0], [1, 0, 0], [0, 0, 0]], atol=1e-12)


def brute_total(visited: Bools) -> float:
    a_and_b = visited[visited[:, 0] & visited[:, 1]]
    size = a_and_b.sum(1)
    shared = a_and_b.astype(int) @ a_and_b.T
    each = 1 / np.sqrt(np.outer(size, size)) / (1 + shared)
    return float(each.sum() - np.trace(each))


def test_no_user_in_two_domains() -> None:
    assert not similarity(np.eye(4, dtype=bool)).any()


def test_who_was_where() -> None:
    users = pl.Series(["b", None, "a", "b", "b"])
    found = visits(users, np.array([0, 1, 2, 0, 1]), 4)
    assert found.tolist() == [[False, False, True, False], [True, True, False, False]]
