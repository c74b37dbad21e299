"""`PackCache`: the live packs, resident, as the store promotes them.

A pack becomes visible by one assignment, after it was fetched and admitted; packs promoted in one step
become visible in one step. A pack that is not admitted is refused, and the one before it serves on. A store
that does not answer, or has lost what it had, takes nothing away: only a good pack replaces a pack, and only
a promotion of nothing (`None`) retires one.

Only so many bytes are resident. A domain that has to go, the one unused for longest, is cold: it is known
which version serves it, and the first request for it brings it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from itertools import islice, takewhile
from typing import TypeVar

import structlog

from service.contract.errors import NotReady, StoreError
from service.contract.pack import GENERAL
from service.loading import Loaded, Loader, Refusal, discard
from service.resident import Resident
from service.residents import Residents
from service.shelf import Shelf
from service.stores._names import ITEMS, is_domain
from service.stores._protocol import Domain, PackStore, Pointers, Version
from service.telemetry import Metrics

_RECONCILE = 60.0
"""Seconds after which everything live is looked at anew, whatever the store announced."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 3.0
"""Seconds before a store that did not answer is asked again: the first time, and at most."""
_LOOK_BACK = 5
"""Versions of a domain's history that are tried where what is live is refused."""
_TOGETHER = 64
"""Packs that are fetched at once, and loaded in one go, at the start."""

log = structlog.get_logger()
T = TypeVar("T")


class PackCache:
    """Follows a store. All of it happens on one event loop, but for files and scoring, in threads."""

    def __init__(
        self,
        store: PackStore,
        loader: Loader,
        shelf: Shelf,
        metrics: Metrics,
        *,
        most_bytes: int,
        pinned: Collection[Domain] = (),
        declared: Collection[Domain] = (),
        items: Callable[[Version | None], None] | None = None,
    ) -> None:
        """A cache with nothing in it.

        Args:
            store: what to follow.
            loader: makes packs resident.
            shelf: this machine's packs.
            metrics: what is counted.
            most_bytes: of resident packs; those pinned, and the general one, are in it and never go.
            pinned: domains that stay resident.
            declared: domains that are loaded first.
            items: told which item table is live, whenever the store says so.
        """
        self.resident = Residents(most_bytes, {GENERAL, *pinned})
        """What answers at once."""
        self.live: dict[Domain, Version] = {}
        """What the store last said."""
        self.good: dict[Domain, Version] = {}
        """What was admitted last, and serves, resident or not."""
        self.refused: dict[Domain, Refusal] = {}
        """What is live and could not be loaded."""
        self.settled = asyncio.Event()
        """Set once what was live at the start was loaded, refused, or left cold; or came from the shelf."""
        self.from_shelf = False
        """Whether what serves is what served last time, because the store has not answered yet."""
        self.changed = asyncio.Event()
        """Set whenever something else serves."""
        self._store, self._loader, self._shelf, self._metrics = store, loader, shelf, metrics
        self._declared = frozenset(declared)
        self._items = items
        self._wait = _FIRST_WAIT
        self._bringing: dict[Domain, asyncio.Task[None]] = {}
        self._coming: set[Domain] = set()
        """What was promoted in one step and does not serve yet; it has to come from the follower."""
        self._came = asyncio.Event()
        self._gone: list[tuple[Domain, Version]] = []
        """What no longer serves, and is on the shelf until it is noted there that it does not."""

    def cold(self, domain: Domain) -> bool:
        """Whether a version is known that may serve a domain, and is not resident."""
        if domain in self.resident:
            return False
        return domain in self.good or (domain in self.live and domain not in self.refused)

    async def bring(self, domain: Domain) -> None:
        """Make a cold domain resident; requests that come together wait for one loading.

        Raises:
            NotReady: it cannot be had now.
        """
        await asyncio.shield(self.fetch_soon(domain))  # who stops waiting does not stop the others

    def fetch_soon(self, domain: Domain) -> asyncio.Task[None]:
        """Begin to make a cold domain resident."""
        task = self._bringing.get(domain)
        if task is None:
            task = self._bringing[domain] = asyncio.create_task(self._bring(domain), name=f"bring {domain}")
            task.add_done_callback(_heard)
        return task

    async def follow(self) -> None:
        """Keep up with the store until cancelled."""
        while True:
            try:
                await self._follow_for(_RECONCILE)
            except StoreError as error:
                # Jitter, or a fleet would come back to its store all at once.
                wait = self._wait * random.uniform(0.5, 1.0)  # noqa: S311
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
                log.warning("the store does not answer", reason=str(error), again_in_seconds=round(wait, 2))
                if not self.settled.is_set():
                    await self._start_from_shelf()
                await asyncio.sleep(wait)
            except Exception:
                log.exception("promotions are no longer followed")
                raise

    def close(self) -> None:
        """Release every pack."""
        for task in self._bringing.values():
            task.cancel()
        self.resident.clear()

    def remember(self) -> None:
        """Note on the shelf what serves now, and drop what no longer does."""
        gone, self._gone = self._gone, []
        self._shelf.remember(dict(self.good))
        for domain, version in gone:
            if self.good.get(domain) != version:
                self._shelf.drop(domain, version)

    async def _follow_for(self, seconds: float) -> None:
        """Take what is live, then what is promoted. Calling it again looks at everything again."""
        until = asyncio.get_running_loop().time() + seconds
        whole = True
        async with aclosing(self._store.changes()) as changes:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        pointers = await anext(changes)
                except TimeoutError:
                    return
                await self._take(self._of_domains(pointers), whole=whole)
                whole = False
                self._wait = _FIRST_WAIT
                self.from_shelf = False
                self._metrics.store_contact.set_to_current_time()
                if not self.settled.is_set():
                    log.info("packs serve", resident=len(self.resident), live=len(self.live))
                self.settled.set()

    def _of_domains(self, pointers: Pointers) -> Pointers:
        """What is not about the item table, which has a follower of its own."""
        if ITEMS in pointers and self._items is not None:
            self._items(pointers[ITEMS])
        return {domain: version for domain, version in pointers.items() if domain != ITEMS}

    async def _take(self, pointers: Pointers, *, whole: bool) -> None:
        """Serve what the store says is live.

        Args:
            pointers: what it says.
            whole: it is everything, and not one promotion.
        """
        for domain in [domain for domain, version in pointers.items() if version is None]:
            self._retire(domain)
        live = {domain: version for domain, version in pointers.items() if version is not None}
        told = {domain: self.live.get(domain) for domain in live}
        self.live.update(live)
        wanted = []
        for domain, version in live.items():
            if self.good.get(domain) == version and (domain in self.resident or domain not in self.refused):
                self.refused.pop(domain, None)
                if domain not in self.resident and whole:
                    wanted.append(domain)
                continue
            refusal = self.refused.get(domain)
            final = refusal is not None and refusal.version == version and refusal.final
            if not final or domain not in self.good:
                wanted.append(domain)
        if self.settled.is_set():
            # What is new since may have been promoted in one step. What was left cold is not new.
            new = {
                domain
                for domain in wanted
                if told[domain] != live[domain]
                or self.good.get(domain, live[domain]) != live[domain]
                or domain in self.refused
                or domain in self._coming
            }
            await self._step(new)
            wanted = [domain for domain in wanted if domain not in new]
        if not whole:
            return
        wanted.sort(key=lambda domain: (domain not in self.resident.pinned, domain not in self._declared))
        for some in _chunks(wanted):
            # What does not fit is left where it is until it is asked for.
            room = self.resident.room(self._loader.nbytes)
            await self._load([domain for domain in some if room or domain in self.resident.pinned])

    async def _step(self, domains: Collection[Domain]) -> None:
        """Load what may have been promoted in one step; until all of it is there, a request gets none of it.

        Raises:
            StoreError: the store does not answer; nothing is changed.
        """
        self._coming = set(domains)
        self._came.clear()
        try:
            await self._load(domains)
            self._coming = set()
        finally:
            self._came.set()

    async def _load(self, domains: Iterable[Domain]) -> None:
        """Fetch and admit what is live in some domains, then let all of it serve at once.

        Raises:
            StoreError: the store does not answer; nothing is changed.
        """
        chosen = [(domain, self.live[domain]) for domain in domains]
        loaded: list[Loaded] = []
        try:
            for some in _chunks(chosen):
                loaded += await self._loader.load(some)
        except StoreError:
            discard(loaded)
            raise
        lost: list[Domain] = []
        for (domain, version), fresh in zip(chosen, loaded, strict=True):
            if isinstance(fresh, Refusal):
                self._refuse(domain, fresh)
                lost += [domain] if domain not in self.good else []
            elif (
                domain in self.resident
                or domain in self.resident.pinned
                or self.resident.room(fresh.handle.nbytes)
            ):
                self._serve(fresh)
            else:
                # It was checked, and is on the shelf; who uses the bytes now keeps them.
                previous, self.good[domain] = self.good.get(domain), version
                if previous not in (None, version):
                    self._gone.append((domain, previous))
                self.refused.pop(domain, None)
                self.changed.set()
                fresh.supersede()
        for domain in lost:
            await self._fall_back(domain)

    async def _fall_back(self, domain: Domain) -> bool:
        """Serve what was live before, where nothing has served a domain here yet and what is live is refused.

        A process that starts late then answers as those do that have seen the better version.

        Raises:
            StoreError: the store does not answer.
        """
        if not is_domain(domain):
            return False  # nothing was ever live under it, and a store refuses to look
        known = self.live.get(domain), self.good.get(domain)
        steps = await self._store.history(domain)
        # Not beyond a retirement: nothing served from then on.
        since = takewhile(lambda step: step.version is not None, reversed(steps))
        before = dict.fromkeys(step.version for step in since if step.version is not None)
        before.pop(self.live.get(domain, ""), None)
        for version in islice(before, _LOOK_BACK):
            (loaded,) = await self._loader.load([(domain, version)])
            if isinstance(loaded, Resident):
                if known != (self.live.get(domain), self.good.get(domain)):
                    loaded.supersede()  # a promotion came first
                    return True
                self._serve(loaded)
                return True
        return False

    async def _bring(self, domain: Domain) -> None:
        try:
            await self._bring_one(domain)
        finally:
            # Here and not in a callback, which runs later: who asks in between would get a loading that is
            # over, and that it waits for without giving way.
            del self._bringing[domain]

    async def _bring_one(self, domain: Domain) -> None:
        if domain in self._coming and domain not in self.good:
            await self._came.wait()
            if domain in self._coming:
                raise NotReady(f"the pack of {domain} cannot be fetched now")
            return
        for version in self._choices(domain):
            try:
                (loaded,) = await self._loader.load([(domain, version)])
            except StoreError as error:
                raise NotReady(f"the pack of {domain} cannot be fetched now: {error}") from None
            if isinstance(loaded, Refusal):
                if version == self.live.get(domain):
                    self._refuse(domain, loaded)
            elif domain in self.resident or version not in {self.live.get(domain), self.good.get(domain)}:
                loaded.supersede()  # a promotion came first
                return
            else:
                self._serve(loaded)
                self._metrics.packs_brought.inc()
                return
        try:
            if await self._fall_back(domain):
                return
        except StoreError as error:
            raise NotReady(f"the pack of {domain} cannot be fetched now: {error}") from None
        refusal = self.refused.get(domain)
        raise NotReady(
            f"the pack of {domain} cannot be loaded: {refusal.reason if refusal else 'it is gone'}"
        )

    def _choices(self, domain: Domain) -> list[Version]:
        """Versions that may serve a cold domain, the best first."""
        good, live, refusal = self.good.get(domain), self.live.get(domain), self.refused.get(domain)
        # What served last before what is live: others were promoted with that, and the follower brings all.
        choices = [] if good is None else [good]
        if live is not None and live != good and (refusal is None or refusal.version != live):
            choices.append(live)
        return choices

    async def _start_from_shelf(self) -> None:
        """Serve what served last time, as far as it is there."""
        serving = await asyncio.to_thread(self._shelf.remembered)
        # The store may have told what is live, and failed then.
        known = {*self.good, *(serving.keys() - self.live.keys() if self.live else ())}
        serving = {domain: version for domain, version in serving.items() if domain not in known}
        order = sorted(serving.items(), key=lambda pair: pair[0] not in self.resident.pinned)
        count = 0
        for pairs in _chunks(order):
            if not self.resident.room(self._loader.nbytes) and pairs[0][0] not in self.resident.pinned:
                break
            for loaded in await asyncio.to_thread(self._loader.kept, pairs):
                if isinstance(loaded, Resident):
                    self._serve(loaded)
                    count += 1
        if not count:
            return
        self.good = {**serving, **self.good}
        self.from_shelf = True
        self.settled.set()
        log.warning("serves what served last time, until the store answers", packs=count)

    def _serve(self, fresh: Resident) -> None:
        """Let a pack answer from the next request on, and make room for it."""
        domain = fresh.domain
        previous, self.good[domain] = self.good.get(domain), fresh.version
        if fresh.version == self.live.get(domain):  # else a refusal of what is live stands
            self.refused.pop(domain, None)
        self._metrics.packs_evicted.inc(self.resident.put(fresh))
        if previous != fresh.version:
            label = self._metrics.label(domain)
            self._metrics.packs_loaded.labels(label).inc()
            self._metrics.pack_since.labels(label).set(fresh.since)
            if self.settled.is_set():  # before, it would be a line for each domain there is
                log.info("pack serves", domain=domain, pack=fresh.version, bytes=fresh.handle.nbytes)
            if previous is not None:
                self._gone.append((domain, previous))
            self.changed.set()

    def _retire(self, domain: Domain) -> None:
        self.live.pop(domain, None)
        self.refused.pop(domain, None)
        good = self.good.pop(domain, None)
        self.resident.drop(domain)
        if good is not None:
            self._gone.append((domain, good))
            self.changed.set()
            log.info("domain retired", domain=domain, pack=good)

    def _refuse(self, domain: Domain, refusal: Refusal) -> None:
        known = self.refused.get(domain)
        self.refused[domain] = refusal
        if known == refusal:
            return
        self._metrics.packs_refused.labels(self._metrics.label(domain)).inc()
        log.error("pack refused", domain=domain, pack=refusal.version, reason=refusal.reason)


def _chunks(listed: Sequence[T]) -> list[Sequence[T]]:
    return [listed[at : at + _TOGETHER] for at in range(0, len(listed), _TOGETHER)]


def _heard(task: asyncio.Task[None]) -> None:
    """A loading that nobody waits for any more may fail without a word."""
    if not task.cancelled():
        task.exception()
