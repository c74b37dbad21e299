"""`Serving`: experiments as one service has them: the document that it follows, and its arms."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.experiments.arms import Arms, Model
from service.experiments.live import Live
from service.experiments.place import open_place
from service.experiments.shadows import Shadows
from service.loading import Loader
from service.packs import PackCache
from service.settings import Settings
from service.telemetry import Metrics


@dataclass(frozen=True)
class Serving:
    """What belongs together."""

    live: Live
    arms: Arms
    shadows: Shadows
    packs: PackCache

    async def follow(self) -> None:
        """Until cancelled; begins once it is known what is live, which arms may name."""
        await self.packs.settled.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.live.follow(), name="follow the document")
            tasks.create_task(self.shadows.follow(), name="score under shadows")

    async def close(self) -> None:
        """Release packs and place."""
        self.shadows.close()
        self.arms.close()
        await self.live.close()


def open_serving(
    settings: Settings, loader: Loader, own: Model, others: Sequence[Model], metrics: Metrics
) -> Serving | None:
    """Experiments as the settings have them; None for none.

    Args:
        settings: where the document is, and the secret of forced arms.
        loader: of the first bundle's packs.
        own: the first bundle, which answers outside of experiments.
        others: those that arms may name.
        metrics: where refusals are counted.

    Raises:
        UnknownOption: the setting looks like a Redis and is none.
    """
    if not settings.experiments:
        return None
    secret = settings.force_secret.get_secret_value() if settings.force_secret else ""
    arms = Arms(loader, own, others, secret)
    place = open_place(settings.experiments)
    live = Live(place, arms.prepare, metrics, settings.experiments_seconds)
    return Serving(live, arms, Shadows(arms, metrics, settings.shadow_share), own.packs)
