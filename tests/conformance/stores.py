"""A store of packs for a test, in an event loop of its own."""

import asyncio

from service.stores._open import open_store

BUNDLE = "tiny-00000000"


def with_store(url, use):
    """Run `use(store)` on a store opened in an event loop of its own."""

    async def run():
        store = open_store(url, BUNDLE)
        try:
            return await asyncio.wait_for(use(store), 20)
        finally:
            await store.close()

    return asyncio.run(run())


async def publish(store, **packs):
    versions = {domain: await store.put(domain, data) for domain, data in packs.items()}
    await store.promote(versions)
    return versions
