"""How many cores, pods and bytes so many requests a second take, from what the benchmarks measured.

    what a core answers      `bench.json`: requests/s of one core kept busy, by candidates
    how much of it           `loadtest-scaling.json`: the share at which p99 keeps its budget, by workers
    packs, memory, Redis     `bench-domains.json`
    the exposure log         `bench-exposures.json`

Every figure of a machine comes from these reports, and those of another machine can be given instead. What is
computed from them is said in a line each by `Fleet`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.sheet import Sheet
from service.contract.errors import MdctrError

_FILES = ("bench", "loadtest-scaling", "bench-domains", "bench-exposures")
_BODY, _ANSWER = (226.0, 6.44), (421.0, 25.56)
"""Bytes of a request and of its answer over HTTP, heads included: all else, and a candidate (the benchmarks'
model, JSON; counted for 1 to 1,000 candidates)."""
_SAMPLES, _EVERY = 20_000, 15.0
"""Samples that a pod's page has at most, and seconds between two scrapes (deploy/k8s/components/operator)."""
_LINK = 10e9
"""Bits/s of the link that Redis is thought to have."""
_ITEM_BYTES, _FIELD_BYTES, _FLOAT = 8, 4, 4
_ITEM_FIELDS = 7
"""Of the benchmarks' model, as docs/load-testing.md says."""
_STORED: Mapping[str, float] = {"dense": 4.0, "half": 2.0, "sparse": 0.05 * (4 + 4), "user": 0.0}
"""Bytes of a pack that an item more adds, by form: a weight; half a weight; a weight and its row for one in
twenty. In memory a weight, where the items' are the domain's own at all."""


class SizeError(MdctrError):
    """A fleet that cannot be sized."""


@dataclass(frozen=True)
class Asked:
    """What a fleet is for."""

    requests: float = 1_000_000.0
    """A second, at the busiest moment."""
    candidates: int = 200
    """Of a request."""
    zones: int = 3
    """Of which one may be lost."""
    workers: int = 4
    """Of a pod, a core each."""
    domains: int = 1_000
    form: str = "sparse"
    """In which their packs are stored: dense, half, sparse or user."""
    items: int = 200_000
    versions: int = 6
    """Of each pack that Redis keeps: the live one, and those before it that `gc` spares."""
    promotions: float = 1_000.0
    """Packs that are promoted in a day."""
    exposures: bool = True
    """Whether what is answered is logged."""


@dataclass(frozen=True)
class Pack:
    """Bytes of a domain's pack."""

    sent: float
    kept: float
    """In Redis."""
    resident: float
    """In a pod."""


@dataclass(frozen=True)
class Measured:
    """The reports, by name."""

    reports: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Measured:
        """Read them.

        Raises:
            SizeError: one is not there.
        """
        try:
            return cls({name: json.loads((folder / f"{name}.json").read_text()) for name in _FILES})
        except OSError as error:
            raise SizeError(f"{error.filename}: {error.strerror}; figures are in docs/figures") from None

    def busy(self, candidates: int) -> float:
        """Requests/s of a core kept busy: between two sizes that were measured, their times' straight line.

        Raises:
            SizeError: nothing was measured near.
        """
        json_bodies = self.reports["bench"]["http"]["json"]
        sizes = sorted(map(int, json_bodies))
        if not sizes[0] <= candidates <= sizes[-1]:
            raise SizeError(f"from {sizes[0]} to {sizes[-1]} candidates were measured, and not {candidates}")
        seconds = [1 / json_bodies[str(size)]["rps_busy"] for size in sizes]
        return 1 / float(np.interp(candidates, sizes, seconds))

    def share(self, workers: int) -> float:
        """Of what cores answer at most, the part at which p99 keeps its budget; of about as many workers."""
        scaling = self.reports["loadtest-scaling"]["scaling"]
        nearest = min(map(int, scaling), key=lambda count: (abs(count - workers), count))
        return float(scaling[str(nearest)]["share_of_saturated"])

    def pack(self, form: str, items: int) -> Pack:
        """A pack of so many items.

        Raises:
            SizeError: there is no such form.
        """
        domains = self.reports["bench-domains"]
        if form not in domains["forms"]:
            raise SizeError(f"packs are {', '.join(domains['forms'])}, and not {form}")
        found, more = domains["forms"][form], items - domains["items"]
        stored = _STORED[form] * more
        return Pack(
            sent=found["pack_bytes"] + stored,
            kept=found["redis_bytes"] / found["resident"] + stored,
            resident=found["resident_bytes"] / found["resident"] + (_FLOAT * more if stored else 0),
        )

    @property
    def private(self) -> float:
        """Bytes that a worker has beside resident packs, at most."""
        forms = self.reports["bench-domains"]["forms"].values()
        return max(float(each["process_mb"] * 2**20 - each["resident_bytes"]) for each in forms)

    def log_bytes(self, candidates: int) -> float:
        """Of an answer in the exposure log: ids and scores, eight bytes an item, and what else a row has."""
        log = self.reports["bench-exposures"]["log"]
        of_items = 2 * _FLOAT * log["items"]
        return float((log["bytes"] - of_items) / log["rows"] + 2 * _FLOAT * candidates)

    @property
    def item_bytes(self) -> int:
        """Of an item: its id, its fields' rows, its item half (first layer, sum of fields, FM)."""
        model = self.reports["bench"]["size"]["model"]
        half = model["hidden"][0] + model["dim"] + 1
        return _ITEM_BYTES + _FIELD_BYTES * _ITEM_FIELDS + _FLOAT * int(half)


@dataclass(frozen=True)
class Fleet:
    """What it takes."""

    asked: Asked
    measured: Measured

    @cached_property
    def load(self) -> float:
        """Of cores, while all zones are there: with one less, p99 must still keep its budget."""
        if self.asked.zones < 2:
            raise SizeError("a fleet that may lose a zone has two at least")
        return self.measured.share(self.asked.workers) * (1 - 1 / self.asked.zones)

    @cached_property
    def per_core(self) -> float:
        """Requests/s of a core at that load."""
        return self.measured.busy(self.asked.candidates) * self.load

    @cached_property
    def pods(self) -> int:
        """As many in each zone."""
        of_a_zone = self.asked.requests / self.asked.zones / (self.per_core * self.asked.workers)
        return self.asked.zones * math.ceil(of_a_zone)

    @property
    def cores(self) -> int:
        """One a worker."""
        return self.pods * self.asked.workers

    @cached_property
    def pack(self) -> Pack:
        """One domain's."""
        return self.measured.pack(self.asked.form, self.asked.items)

    @property
    def resident(self) -> float:
        """Bytes of all domains' packs in a pod, which its workers share."""
        return self.pack.resident * self.asked.domains

    @property
    def item_table(self) -> float:
        """Bytes, mapped once a node."""
        return float(self.asked.items * self.measured.item_bytes)

    @property
    def memory(self) -> float:
        """Bytes of a pod: packs and item table once, and each worker's own."""
        return self.resident + self.item_table + self.asked.workers * self.measured.private

    @property
    def redis_memory(self) -> float:
        """Bytes: every kept version of every pack as Redis holds it, and four item tables."""
        return self.pack.kept * self.asked.domains * self.asked.versions + 4 * self.item_table

    @property
    def redis_start(self) -> float:
        """Bytes that Redis sends when all pods start at once: workers that start together all fetch all."""
        return self.pack.sent * self.asked.domains * self.cores

    @property
    def redis_steady(self) -> float:
        """Bytes/s that Redis sends for promotions, on a day's average, to all workers."""
        return self.pack.sent * self.asked.promotions / 86_400 * self.cores

    @property
    def traffic(self) -> tuple[float, float]:
        """Bytes/s of requests, and of answers, of the whole fleet."""
        sizes = [base + each * self.asked.candidates for base, each in (_BODY, _ANSWER)]
        return self.asked.requests * sizes[0], self.asked.requests * sizes[1]

    @property
    def log_day(self) -> float:
        """Bytes of exposures in a day at this rate; 0 without a log."""
        per_answer = self.measured.log_bytes(self.asked.candidates) if self.asked.exposures else 0.0
        return per_answer * self.asked.requests * 86_400

    def figures(self) -> dict[str, str]:
        """What a person would look at."""
        asked, measured = self.asked, self.measured
        comes, goes = (8 * each for each in self.traffic)
        packs, table, own = (each / 1e9 for each in (self.resident, self.item_table, measured.private))
        start, log = self.redis_start, self.log_day
        return {
            "a core kept busy": f"{measured.busy(asked.candidates):,.0f} requests/s",
            "of that, p99 below 10 ms": f"{measured.share(asked.workers):.2f}",
            f"of that, with all of {asked.zones} zones": f"{1 - 1 / asked.zones:.2f}",
            "a core, planned": f"{self.per_core:,.0f} requests/s, a load of {self.load:.2f}",
            "candidates/s of a core": f"{self.per_core * asked.candidates:,.0f}",
            "cores": f"{self.cores:,}, {self.cores // asked.zones:,} a zone",
            "pods": f"{self.pods:,} of {asked.workers} workers",
            "memory of a pod": f"{self.memory / 1e9:.2f} GB: "
            f"packs {packs:.2f}, items {table:.2f}, {asked.workers} workers {asked.workers * own:.2f}",
            "requests and answers": f"{comes / 1e9:,.1f} and {goes / 1e9:,.1f} Gbit/s",
            "the same, of a pod": f"{comes / self.pods / 1e6:,.0f} and {goes / self.pods / 1e6:,.0f} Mbit/s",
            "Redis, memory": f"{self.redis_memory / 1e9:.2f} GB",
            "Redis, connections that wait": f"{self.cores:,}",
            "Redis, all pods start": f"{start / 1e9:,.0f} GB, "
            f"{8 * start / _LINK:,.0f} s of {_LINK / 1e9:g} Gbit/s",
            "Redis, promotions": f"{8 * self.redis_steady / 1e6:,.1f} Mbit/s",
            "exposures": f"{log / 1e12:,.0f} TB a day, {log / 86_400 / self.pods / 1e6:,.1f} MB/s of a pod",
            "Prometheus, at most": f"{_SAMPLES * self.pods / 1e6:,.1f} million series, "
            f"{_SAMPLES * self.pods / _EVERY / 1e3:,.0f} thousand samples/s",
        }

    def sheet(self) -> Sheet:
        """The same, as a table."""
        return Sheet(["what", "how much"], [[name, value] for name, value in self.figures().items()])
