"""Swing: how alike domains are by whom they share (Yang et al. 2020; CSAMP, eq. 2).

Two users who both visited domains i and j speak for the pair, the more so the less else they have in
common. The paper's sum runs over u1 in U_i and u2 in U_j; as its text speaks of the overlap of users, and as
Swing does, both users are in both sets here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 2**24
"""Pairs of patterns that are looked at together."""
_ROUNDING = 1e-9
"""What is left of a sum when all of it is taken away, at most, as a share of it."""
_SET = 8
"""What a set of domains costs, in pairs of patterns."""


def visits(user: pl.Series, domain: npt.NDArray[np.int64], domains: int) -> Bools:
    """Who was where: (U, D) of n rows.

    Args:
        user: n ids, or null.
        domain: (n,) positions.
        domains: D.
    """
    code = user.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    found = np.zeros((code.max() + 1, domains), np.bool_)
    found[code, domain] = True
    return found[1:]


def similarity(visited: Bools, alpha: float = 1.0) -> Floats:
    """How alike each domain is to each other one, from 0 to 1, its most similar one.

    Sim(i, j) = sum over u1 != u2, both in U_i and U_j, of w_u1 w_u2 / (alpha + |S_u1 n S_u2|), where S_u are
    the domains that u visited and w_u = |S_u|^-1/2. Users of one pattern A of visits are alike, so with n_A
    of them the sum is exactly

        sum_{A,B} n_A n_B w_A w_B / (alpha + |A n B|) - sum_A n_A w_A^2 / (alpha + |A|)

    over the patterns with both i and j. It is summed over pairs of patterns, or over sets of domains,
    whatever there are fewer of.

    Args:
        visited: (U, D).
        alpha: keeps those with little in common from counting too much; above 0.

    Returns:
        (D, D), each row over its maximum, which is over the others; 0 on the diagonal.
    """
    pattern, users = _patterns(visited)
    size = pattern.sum(1, dtype=np.float64)
    weight = users / np.sqrt(size)
    few = len(pattern) ** 2 <= _SET * 2.0 ** visited.shape[1]
    total = (_by_pairs if few else _by_sets)(pattern, weight, alpha)
    plain = pattern.astype(np.float64)
    found = total - (plain * (users / size / (alpha + size))[:, None]).T @ plain
    np.fill_diagonal(found, 0)
    found[found < _ROUNDING * total] = 0
    top = found.max(1, keepdims=True, initial=0)
    scaled: Floats = np.divide(found, top, out=np.zeros_like(found), where=top > 0)
    return scaled


def _by_pairs(pattern: Bools, weight: Floats, alpha: float) -> Floats:
    """The sum over A and B, (D, D), its diagonal left 0; `pattern` (A, D) with n_A w_A in `weight` (A,)."""
    domains = pattern.shape[1]
    first, second = np.triu_indices(domains, 1)
    of_pair = (pattern[:, first] & pattern[:, second]) * weight[:, None]  # (A, pairs of domains)
    plain = pattern.astype(np.float32)
    total = np.zeros(len(first))
    step = max(_BLOCK // max(len(pattern), 1), 1)
    for start in range(0, len(pattern), step):
        part = slice(start, start + step)
        closeness = 1 / (alpha + (plain[part] @ plain.T).astype(np.float64))
        total += (of_pair[part] * (closeness @ of_pair)).sum(0)
    found = np.zeros((domains, domains))
    found[first, second] = found[second, first] = total
    return found


def _by_sets(pattern: Bools, weight: Floats, alpha: float) -> Floats:
    """The same, from W_T, the weight of all patterns that hold T, for each set T of domains.

    With h_0 = 1 / alpha and h_r = -h_(r-1) r / (alpha + r), the sum of h_|C| over the subsets C of a set of s
    domains is 1 / (alpha + s). So the sum over A and B is that of h_|C| W_(C u {i,j})^2 over all sets C, of
    which four have one union T with {i, j}.
    """
    domains = pattern.shape[1]
    holding = np.bincount(pattern @ (1 << np.arange(domains)), weight, minlength=1 << domains)
    for at in range(domains):
        without, with_it = holding.reshape(-1, 2, 1 << at).transpose(1, 0, 2)
        without += with_it
    h = np.cumprod([1 / alpha, *(-r / (alpha + r) for r in range(1, domains + 1))])
    of_size = h + 2 * np.append(0, h[:-1]) + np.append([0, 0], h[:-2])
    member = ((np.arange(1 << domains)[:, None] >> np.arange(domains)) & 1).astype(np.float64)
    each = of_size[member.sum(1).astype(np.int64)] * holding**2
    found: Floats = (member * each[:, None]).T @ member
    return found


def _patterns(visited: Bools) -> tuple[Bools, Floats]:
    """The distinct rows with two domains or more, (A, D), and how many users have each, (A,)."""
    packed = pl.from_numpy(np.packbits(visited[visited.sum(1) > 1], axis=1))
    counted = packed.group_by(pl.all(), maintain_order=True).len("users")
    bits = counted.drop("users").to_numpy()
    pattern = np.unpackbits(bits, axis=1, count=visited.shape[1]).astype(np.bool_)
    return pattern, counted["users"].to_numpy().astype(np.float64)
