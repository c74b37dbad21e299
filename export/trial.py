"""`begin`: put packs on trial before they go live, as an experiment that `service guard` moves on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from service import lifecycle
from service.contract.errors import SettingsError
from service.experiments import canary
from service.experiments.canary import ERRORS, HOLD, LASTS, MARGIN, SHARES
from service.experiments.document import Trial, parse
from service.experiments.place import open_place
from service.stores._protocol import PackStore


async def begin(
    store: PackStore,
    versions: Mapping[str, str],
    *,
    bundle: str,
    where: str,
    by: str,
    hold: timedelta = HOLD,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Begin a trial, and return its experiment.

    Args:
        store: that has the packs.
        versions: by domain, a version or a unique beginning of one.
        bundle: the id of the bundle that the packs are of.
        where: the document of experiments, as `open_place` takes it.
        by: who, for its history.
        hold: how long each step lasts at least.
        dry_run: change nothing.

    Raises:
        SettingsError: nobody says where the document is.
        UnknownVersion: one of them stands for no version, or for several.
        ExperimentsError: the document does not allow it, such as where a trial is under way.
        Conflict: somebody else changed the document meanwhile.
    """
    if not where:
        raise SettingsError("--canary needs --experiments, or MDCTR_EXPERIMENTS")
    whole = dict(await lifecycle.resolve(store, versions.items(), verify=True))
    live = await store.live()
    now = datetime.now(UTC)
    plan = Trial(
        bundle=bundle,
        against={domain: live.get(domain) for domain in whole},
        shares=SHARES,
        hold_seconds=hold.total_seconds(),
        margin=MARGIN,
        until=now + LASTS,
    )
    experiment = canary.declared(
        whole, [{"metric": "error_rate", "max": ERRORS, "action": "stop"}], plan, now
    )
    place = open_place(where)
    try:
        found = await place.read()
        document = canary.begun(None if found is None else json.loads(found.text), experiment)
        text = json.dumps(document, indent=2).encode()
        parse(text, canary=True)
        if not dry_run:
            await place.replace(found, text, by=by, why=f"{experiment['name']} begins")
    finally:
        await place.close()
    return experiment
