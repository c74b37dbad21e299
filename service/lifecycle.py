"""The life cycle of packs: put, promote, roll back, retire, collect.

The command line (`export.lifecycle`) and the admin API (`service.api.admin`) call the same functions and
answer with the same records.

A rollback undoes. Reading a domain's history from its oldest entry, a promotion goes on top of a pile, and a
rollback takes the top off it, down to what it made live. So a second rollback goes one version further back
and never returns to the version that the first one left. A promotion of an old version by hand, and a
rollback to a version that an earlier one left, go on top, too, and are undone as they were done. A retirement
can be rolled back like a promotion; a rollback skips retirements and repetitions, and always makes another
version live.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from service.contract.bundle import Bundle
from service.contract.errors import Conflict, MdctrError, PackError, UnknownVersion
from service.contract.pack import DomainPack
from service.contract.pack import version as version_of
from service.engines._protocol import Engine
from service.records import Change, DomainHistory, DomainOverview, KeptVersion, Put, Removed, Step
from service.resident import check_golden
from service.stores._names import is_domain
from service.stores._protocol import Domain, Kept, PackStore, Pointers, Promotion, Version

SHORTEST = 4
"""Characters of a version that may stand for all of them."""
_LENGTH = 16
_START = re.compile(rf"[0-9a-f]{{{SHORTEST},{_LENGTH}}}")
SPARED = 5
"""Versions of each domain's history that a collection leaves, unless told otherwise."""

_ROLLBACK = "rollback of "
_NOTHING = "nothing"
_NAMED = 10
"""Versions that a rollback's run names; of more it says how many, since every domain's history has it."""
_MANY = re.compile(r"\d+ versions")


async def overview(store: PackStore) -> list[DomainOverview]:
    """Every domain that the store has a pack of, or ever had a live one of, sorted."""
    live, kept = await store.live(), _by_domain(await store.kept())
    lines = []
    for domain in sorted(filter(is_domain, {*live, *kept})):  # item tables are no domain's
        version = live.get(domain)
        steps = [] if version is None else await store.history(domain)
        # The history may already be ahead of what was live a moment ago.
        last = next((step for step in reversed(steps) if step.version == version), None)
        packs = kept.get(domain, {})
        lines.append(
            DomainOverview(
                domain=domain,
                live=version,
                since=last.time if last else None,
                run=last.run if last else "",
                by=last.by if last else "",
                bytes=packs.get(version or "", 0),
                kept=len(packs),
            )
        )
    return lines


async def show(store: PackStore, domain: Domain) -> DomainHistory:
    """One domain's history and the versions that are kept.

    Raises:
        UnknownVersion: the store never had a pack of it.
    """
    live = await store.live()
    packs = _by_domain(await store.kept()).get(domain, {})
    if domain not in live and not packs:
        raise UnknownVersion(f"the store has no pack of {domain}")
    steps = await store.history(domain)
    promoted = {step.version: step.time for step in steps}
    versions = sorted(packs, key=lambda version: (promoted.get(version, float("inf")), version))
    return DomainHistory(
        domain=domain,
        live=live.get(domain),
        previous=previous(steps, live.get(domain)),
        history=[Step(step.version, step.time, step.run, step.by) for step in steps],
        kept=[KeptVersion(version, packs[version], promoted.get(version)) for version in versions],
    )


def check(
    data: bytes,
    *,
    bundle: Bundle,
    engine: Engine,
    tolerance: float,
    domain: Domain | None = None,
    version: Version | None = None,
) -> DomainPack:
    """Check a pack as a service would, before it is stored.

    Args:
        data: what claims to be a pack.
        bundle: that it must belong to.
        engine: what scores its golden rows.
        tolerance: how far their probabilities may be from training's.
        domain: what it must be for; None where its own word is taken.
        version: what its content must hash to; None where that is not known.

    Raises:
        PackError: every service would refuse it; the text says why.
    """
    if version is not None and version_of(data) != version:
        raise PackError(f"its content is version {version_of(data)}, not {version}")
    if len(data) > (most := bundle.manifest.most_pack_bytes):
        raise PackError(f"it has {len(data)} bytes; a pack of this bundle has at most {most}")
    try:
        pack = DomainPack.from_bytes(data, bundle.base)
        pack.check(bundle.manifest)
    except MdctrError:
        raise
    except Exception as error:  # bytes of anybody's may break a reader in a way that nobody listed
        line = (str(error).splitlines() or [""])[0]
        raise PackError(f"not a pack: {type(error).__name__}: {line}") from error
    if domain is not None and pack.domain != domain:
        raise PackError(f"it is of domain {pack.domain!r}, not {domain!r}")
    check_golden(pack, engine, tolerance)
    return pack


async def put(store: PackStore, domain: Domain, data: bytes) -> Put:
    """Keep a pack that was checked. Nothing becomes live."""
    return Put(domain, await store.put(domain, data), len(data))


async def resolve(
    store: PackStore, asked: Iterable[tuple[Domain, str]], *, verify: bool = False
) -> list[tuple[Domain, Version]]:
    """The whole versions that beginnings of them stand for.

    Args:
        store: where they are.
        asked: domains, and versions or beginnings of them.
        verify: look whether whole versions are kept, too. Who fetches or promotes them learns it anyway, and
            looking takes the longer the more there is in the store.

    Raises:
        UnknownVersion: one stands for no version that is kept, or for more than one.
    """
    pairs = [*asked]
    for domain, start in pairs:
        if not is_domain(domain):
            raise UnknownVersion(f"{domain!r} is not a domain's name")
        if not _START.fullmatch(start):
            raise UnknownVersion(
                f"{start!r} is not a version of {domain}, nor {SHORTEST} or more characters of one"
            )
    if not verify and all(len(start) == _LENGTH for _, start in pairs):
        return pairs
    kept = _by_domain(await store.kept())
    return [(domain, _whole(domain, start, kept.get(domain, {}))) for domain, start in pairs]


async def promote(
    store: PackStore,
    versions: Mapping[Domain, str],
    *,
    run: str = "",
    by: str = "",
    expected: Pointers | None = None,
    dry_run: bool = False,
) -> list[Change]:
    """Make versions live in one step, and return what that changed.

    A domain in which the version is live already gets no new step in its history.

    Args:
        store: where they were put.
        versions: by domain, a version or a unique beginning of one.
        run: where they came from, for the history.
        by: who promotes, for the history.
        expected: by domain, what must be live for the step to happen, or a beginning of it; None where
            nothing may be.
        dry_run: change nothing.

    Raises:
        UnknownVersion: one of them stands for no version, or for several; nothing is promoted.
        Conflict: something else is live than expected; nothing is promoted.
    """
    whole = dict(await resolve(store, versions.items(), verify=dry_run))
    live = await store.live()
    wanted = {domain: _as_live(start, live.get(domain)) for domain, start in (expected or {}).items()}
    for domain, version in wanted.items():
        if live.get(domain) != version:
            raise Conflict(
                f"{live.get(domain) or _NOTHING} is live in {domain}, not {version or _NOTHING} as expected"
            )
    changes = [Change(domain, live.get(domain), version) for domain, version in whole.items()]
    moved = {change.domain: change.after for change in changes if change.before != change.after}
    if moved and not dry_run:
        await store.promote(moved, run=run, by=by, expected=wanted or None)
    return changes


async def rollback(
    store: PackStore,
    domains: Collection[Domain],
    *,
    to: str | None = None,
    by: str = "",
    dry_run: bool = False,
) -> list[Change]:
    """Make the versions before the live ones live again, in one step, and return what that changed.

    Args:
        store: where the packs are.
        domains: which to roll back.
        to: a version, or a unique beginning of one, instead of the one before.
        by: who rolls back, for the history.
        dry_run: change nothing.

    Raises:
        UnknownVersion: a domain has no version before the live one, or it is no longer kept, or there is no
            version `to`; nothing is changed.
        Conflict: a promotion came in between; nothing is changed.
    """
    live = await store.live()
    targets = []
    for domain in dict.fromkeys(domains):
        target = to
        if target is None and domain in live:
            target = previous(await store.history(domain), live[domain])
        if target is None:
            raise UnknownVersion(f"{domain} has no earlier version to roll back to")
        targets.append((domain, target))
    whole = await resolve(store, targets, verify=dry_run)
    changes = [Change(domain, live.get(domain), version) for domain, version in whole]
    moved = [change for change in changes if change.before != change.after]
    if moved and not dry_run:
        await store.promote(
            {change.domain: change.after for change in moved},
            run=_rollback_of(moved),
            by=by,
            expected={change.domain: change.before for change in moved},
        )
    return changes


async def retire(
    store: PackStore, domains: Collection[Domain], *, run: str = "", by: str = "", dry_run: bool = False
) -> list[Change]:
    """Let nothing be live in domains, in one step. Their packs stay until they are collected.

    Raises:
        UnknownVersion: nothing is live in one of them; nothing is changed.
        Conflict: a promotion came in between; nothing is changed.
    """
    live = await store.live()
    changes = [Change(domain, live.get(domain), None) for domain in dict.fromkeys(domains)]
    for change in changes:
        if change.before is None:
            raise UnknownVersion(f"nothing is live in {change.domain}")
    if changes and not dry_run:
        expected = {change.domain: change.before for change in changes}
        await store.promote(dict.fromkeys(expected), run=run, by=by, expected=expected)
    return changes


async def gc(
    store: PackStore,
    *,
    keep: int = SPARED,
    unpromoted: bool = False,
    domains: Collection[Domain] | None = None,
    needed: Collection[tuple[Domain, Version]] = (),
    dry_run: bool = False,
) -> list[Removed]:
    """Remove packs that nothing needs, and return them.

    What is live stays, and so do the last `keep` distinct versions of a domain's history. A version that the
    history does not name may wait for its promotion, so it stays, too, unless it is asked for.

    Args:
        store: where the packs are.
        keep: versions of each history that stay; 0 leaves nothing to roll back to.
        unpromoted: take versions that the history does not name: never promoted, or too long ago.
        domains: only these.
        needed: versions that stay in any case, such as those that experiments name.
        dry_run: remove nothing.
    """
    kept = [pack for pack in await store.kept() if is_domain(pack.domain)]
    live = await store.live()
    candidates = []
    for domain in sorted({pack.domain for pack in kept if domains is None or pack.domain in domains}):
        named = [step.version for step in reversed(await store.history(domain)) if step.version]
        spared = {live.get(domain), *[*dict.fromkeys(named)][:keep]}
        spared |= {version for of, version in needed if of == domain}
        candidates += [
            pack
            for pack in kept
            if pack.domain == domain and pack.version not in spared and (unpromoted or pack.version in named)
        ]
    taken: Sequence[Kept] = candidates
    if candidates and not dry_run:
        taken = await store.remove([(pack.domain, pack.version) for pack in candidates], keep)
    ordered = sorted(taken, key=lambda pack: (pack.domain, pack.version))
    return [Removed(pack.domain, pack.version, pack.nbytes) for pack in ordered]


def previous(history: Sequence[Promotion], live: Version | None) -> Version | None:
    """Where a rollback from `live` goes; None if there is nothing to go back to."""
    pile: list[Version | None] = []
    seen: set[Version | None] = set()
    before: Version | None = None
    for step in history:
        if _undoes(step, before):
            left = pile[:-1]
            if step.version in left:
                pile = left[: _last(left, step.version)]
            elif step.version not in seen:
                pile = left  # it went further back than the history does, or to a pack never promoted
        pile.append(step.version)
        seen.add(step.version)
        before = step.version
    return next((version for version in reversed(pile) if version not in (None, live)), None)


def _last(pile: Sequence[Version | None], version: Version | None) -> int:
    return len(pile) - 1 - pile[::-1].index(version)


def _undoes(step: Promotion, before: Version | None) -> bool:
    """Whether a step is a rollback of the one before it."""
    named = step.run.removeprefix(_ROLLBACK)
    if named == step.run:
        return False
    return _MANY.fullmatch(named) is not None or (before or _NOTHING) in named.split(", ")


def _rollback_of(changes: Iterable[Change]) -> str:
    """A rollback in the words of a history."""
    left = [*dict.fromkeys(change.before or _NOTHING for change in changes)]
    return _ROLLBACK + (", ".join(left) if len(left) <= _NAMED else f"{len(left)} versions")


def _by_domain(kept: Iterable[Kept]) -> dict[Domain, dict[Version, int]]:
    packs: dict[Domain, dict[Version, int]] = {}
    for pack in kept:
        packs.setdefault(pack.domain, {})[pack.version] = pack.nbytes
    return packs


def _whole(domain: Domain, start: str, packs: Collection[Version]) -> Version:
    found = sorted(version for version in packs if version.startswith(start))
    if not found:
        raise UnknownVersion(f"the store has no version {start} of {domain}")
    if len(found) > 1:
        raise UnknownVersion(f"{start} is not one version of {domain}: {', '.join(found)}")
    return found[0]


def _as_live(start: str | None, live: Version | None) -> Version | None:
    """What is live, where `start` is a beginning of it; else as it stands, which is then a conflict."""
    if start and live and len(start) >= SHORTEST and live.startswith(start):
        return live
    return start or None
