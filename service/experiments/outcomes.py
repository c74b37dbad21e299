"""`Outcomes`: impressions and clicks of one experiment, as arrays of requests and of units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from service.contract.exposure import Log

Ints = npt.NDArray[np.int64]
_DAY = 86400
"""Seconds."""
_AT_FAULT = 500


@dataclass(frozen=True)
class Outcomes:
    """Q requests of U units; a click is counted once, on the day of the request that it belongs to."""

    arms: tuple[str, ...]
    domains: tuple[str, ...]
    names: tuple[str, ...]
    """(U,) of the units."""
    arm: Ints
    """(U,) index of each unit's arm."""
    unit: Ints
    """(Q,)"""
    domain: Ints
    """(Q,)"""
    day: Ints
    """(Q,) days since 1970, UTC."""
    impressions: Ints
    """(Q,) items that were shown."""
    clicks: Ints
    """(Q,)"""
    probability: npt.NDArray[np.float32]
    """(B,) of every impression, request by request."""
    clicked: npt.NDArray[np.bool_]
    """(B,)"""
    failed: npt.NDArray[np.bool_]
    """(Q,) whether the service was at fault: a status of 500 or more."""
    ms: npt.NDArray[np.float32]
    """(Q,) from arrival to answer; NaN where the log does not say."""
    faults: dict[str, int]
    """What was left out, and how much of it."""

    def totals(self, arm: int, requests: Ints | None = None) -> tuple[Ints, Ints]:
        """Clicks and impressions by unit of an arm, over some requests; units without any are left out."""
        at = np.flatnonzero(self.impressions) if requests is None else requests
        at = at[(self.arm[self.unit[at]] == arm) & (self.impressions[at] > 0)]
        _, unit = np.unique(self.unit[at], return_inverse=True)
        clicks, impressions = (np.bincount(unit, values[at]) for values in (self.clicks, self.impressions))
        return clicks.astype(np.int64), impressions.astype(np.int64)

    def units(self, arm: int) -> Ints:
        """The units of an arm that `totals` over all requests has, in its order."""
        seen = np.unique(self.unit[self.impressions > 0])
        found: Ints = seen[self.arm[seen] == arm]
        return found

    def by_domain(self) -> Iterator[tuple[str, Ints]]:
        """Each domain's name and its requests."""
        order = np.argsort(self.domain, kind="stable")
        ends = np.cumsum(np.bincount(self.domain, minlength=len(self.domains)))
        yield from zip(self.domains, np.split(order, ends[:-1]), strict=True)

    def by_day(self) -> Iterator[tuple[str, Ints, Ints]]:
        """Each day's name, its requests, and those of all days up to it."""
        for day in np.unique(self.day):
            name = datetime.fromtimestamp(int(day) * _DAY, UTC).date().isoformat()
            yield name, np.flatnonzero(self.day == day), np.flatnonzero(self.day <= day)

    def scored(self, arm: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Probabilities and clicks of an arm's impressions."""
        at = np.repeat(self.arm[self.unit] == arm, self.impressions) & np.isfinite(self.probability)
        return self.probability[at], self.clicked[at]


def outcomes(log: Log, experiment: str, arms: Sequence[str]) -> Outcomes:
    """What a log says of an experiment's declared arms.

    A request logged twice counts once. A unit seen under two arms is left out: its clicks are of neither.
    Where events of a domain say what was `shown`, nothing else of its answers counts, but what was clicked.
    """
    logged = log.exposures.filter(pc.equal(log.exposures["experiment"], experiment))
    there = logged.filter(_whole(logged))
    known = pc.is_in(there["arm"], pa.array(arms, pa.string()))
    rows = there.filter(known).combine_chunks()
    first = _first(rows["request_id"])
    once = rows.take(first).combine_chunks()
    unit, names = _coded(once["unit"])
    arm = pc.index_in(once["arm"], pa.array(arms, pa.string())).to_numpy().astype(np.int64)
    low, high = np.full(len(names), len(arms)), np.full(len(names), -1)
    np.minimum.at(low, unit, arm)
    np.maximum.at(high, unit, arm)
    kept = (low == high)[unit]
    once = once.filter(pa.array(kept))
    unit, names = _coded(once["unit"])
    of_unit = np.zeros(len(names), np.int64)
    of_unit[unit] = arm[kept]
    domain, domains = _coded(once["domain"])
    answered = pc.list_value_length(once["ids"]).to_numpy().astype(np.int64)
    clicked, joined = _told(once, answered, log.clicks)
    shown = _shown(once, answered, domain, log.shown) | clicked
    impressions = _summed(shown, answered)
    scores = _flat(once["scores"]).to_numpy(zero_copy_only=False).astype(np.float32)
    return Outcomes(
        tuple(arms),
        domains,
        names,
        of_unit,
        unit,
        domain,
        np.floor(once["time"].to_numpy() / _DAY).astype(np.int64),
        impressions,
        _summed(clicked, answered),
        scores[shown],
        clicked[shown],
        pc.fill_null(once["status"], 200).to_numpy() >= _AT_FAULT,
        once["ms"].to_numpy(),
        {
            "requests_incomplete": logged.num_rows - there.num_rows,
            "requests_of_other_arms": there.num_rows - rows.num_rows,
            "requests_logged_again": rows.num_rows - len(first),
            "units_in_two_arms": int((low != high).sum()),
            "clicks_of_no_impression_here": log.clicks.num_rows - joined,
            "items_not_shown": int(len(shown) - shown.sum()),
        },
    )


def _whole(exposures: pa.Table) -> pa.ChunkedArray:
    """Whether a request says who, when and where, and has a score for each item."""
    found = pc.equal(pc.list_value_length(exposures["ids"]), pc.list_value_length(exposures["scores"]))
    for name in ("request_id", "time", "unit", "domain"):
        found = pc.and_(found, pc.is_valid(exposures[name]))
    return found


def _shown(exposures: pa.Table, answered: Ints, domain: Ints, events: pa.Table) -> npt.NDArray[np.bool_]:
    """(B,) whether each item of an answer was shown; all are, in a domain of which no event says so."""
    if not events.num_rows:
        return np.ones(answered.sum(), np.bool_)
    seen, _ = _told(exposures, answered, events)
    told = np.zeros(domain.max(initial=0) + 1, np.bool_)
    told[domain[_summed(seen, answered) > 0]] = True
    found: npt.NDArray[np.bool_] = seen | np.repeat(~told[domain], answered)
    return found


def _summed(values: npt.NDArray[np.bool_], sizes: Ints) -> Ints:
    """(Q,) how many are true, request by request."""
    before, ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)]), np.cumsum(sizes)
    found: Ints = before[ends] - before[ends - sizes]
    return found


def _told(exposures: pa.Table, impressions: Ints, clicks: pa.Table) -> tuple[npt.NDArray[np.bool_], int]:
    """Whether each item of an answer has an event, and how many events belong to one.

    An event of an item that stands twice in one answer belongs to the first place.
    """
    items = _flat(exposures["ids"])
    coded = items.dictionary_encode()
    request = np.repeat(np.arange(len(impressions)), impressions)
    width = max(len(coded.dictionary), 1)
    keys, place = np.unique(request * width + coded.indices.to_numpy(), return_index=True)
    of = pc.index_in(clicks["request_id"], exposures["request_id"].combine_chunks())
    item = pc.index_in(clicks["item"], coded.dictionary)
    found = pc.and_(pc.is_valid(of), pc.is_valid(item)).to_numpy()
    wanted = (pc.fill_null(of, 0).to_numpy().astype(np.int64) * width + pc.fill_null(item, 0).to_numpy())[
        found
    ]
    at = np.searchsorted(keys, wanted)
    hit = at < len(keys)
    hit[hit] = keys[at[hit]] == wanted[hit]
    clicked = np.zeros(len(items), np.bool_)
    clicked[place[at[hit]]] = True
    return clicked, int(hit.sum())


def _first(column: pa.ChunkedArray) -> Ints:
    """Where each value stands first, in order."""
    codes, _ = _coded(column)
    found: Ints = np.sort(np.unique(codes, return_index=True)[1])
    return found


def _coded(column: pa.ChunkedArray) -> tuple[Ints, tuple[str, ...]]:
    """Indices into the values that there are."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), tuple(coded.dictionary.to_pylist())


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()
