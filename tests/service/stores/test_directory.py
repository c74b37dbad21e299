"""What a folder holds whose writer is killed, or whose file is damaged."""

import subprocess
import sys
import time

import pytest

from service.contract.errors import StoreError
from service.contract.pack import version
from tests.conformance.stores import BUNDLE, publish, with_store

WRITER = """
import asyncio, sys
from service.stores._open import open_store
async def main():
    store = open_store(sys.argv[1], "tiny-00000000")
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        data = str(number).encode() * 20000
        await store.promote({domain: await store.put(domain, data) for domain in ("a", "b")})
asyncio.run(main())
"""


def test_a_folder_whose_writer_is_killed_holds_only_whole_things(tmp_path):
    url = f"directory:{tmp_path}"
    for delay in (0.0, 0.03, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + delay)
        writer.kill()
        writer.communicate()

        async def use(store):
            live = await store.live()
            assert live.get("a") == live.get("b")
            for domain, one in live.items():
                assert version(await store.fetch(domain, one)) == one

        with_store(url, use)
    packs = list(tmp_path.rglob("*.safetensors"))
    assert packs
    assert all(version(path.read_bytes()) == path.stem for path in packs)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"live": {}, "history": null}'])
def test_a_damaged_live_file_is_a_store_error(tmp_path, text):
    async def use(store):
        await publish(store, books=b"1")
        (tmp_path / BUNDLE / "live.json").write_text(text)
        with pytest.raises(StoreError):
            await store.live()

    with_store(f"directory:{tmp_path}", use)
