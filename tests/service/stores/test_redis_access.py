"""Users, passwords and TLS."""

import asyncio
import ssl
from contextlib import ExitStack, aclosing, closing
from urllib.parse import quote

import pytest
import trustme

from loadtest.redis_server import RedisServer, tls_proxy
from loadtest.server import free_port
from service.contract.errors import StoreError
from tests.conformance.stores import publish, with_store
from tests.service.stores.redises import again, ask_all, documented


async def reads(store, versions):
    assert await store.live() == versions
    for domain, one in versions.items():
        for most in (None, 100):
            assert await store.fetch(domain, one, most) == b""
        assert [told.version for told in await store.history(domain)] == [one]
    async with aclosing(store.changes()) as changes:
        assert await anext(changes) == versions


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_the_users_documented_can_do_what_they_must(request, kind, monkeypatch):
    monkeypatch.setattr("service.stores.redis._SILENCE", 0.05)
    redis = request.getfixturevalue(kind)
    url = redis if kind == "cluster" else redis.url
    more = ["+cluster|slots", "+command", "+readonly"] if kind == "cluster" else []
    for user in ("mdctr-reader", "mdctr-writer"):
        command = [*documented(user, "p/:@?"), *more]
        ask_all(url, *command) if kind == "cluster" else redis.ask(*command)

    def as_user(user, password="p/:@?"):
        options = "?read_replicas=true" if kind == "cluster" else ""
        return url.replace("://", f"://{user}:{quote(password, safe='')}@") + options

    async def write(store):
        versions = await publish(store, books=b"", films=b"")
        old = await store.put("books", b"old")
        await store.promote({"books": versions["books"]}, expected={"books": versions["books"]})
        assert [pack.version for pack in await store.remove([("books", old)], 1)] == [old]
        assert len(await store.kept()) == 2
        await store.promote({"films": None})
        async with aclosing(store.changes()) as changes:
            waiting = await anext(changes)
            task = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.2)
            await store.promote({"films": versions["films"]})
            assert await task == {"films": versions["films"]}
        assert waiting["films"] is None
        return versions

    with_store(as_user("mdctr-writer"), write)

    async def read(store):
        live = await store.live()
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == live
        for domain, one in live.items():
            assert [await store.fetch(domain, one, most) for most in (None, 100)] == [b"", b""]
            assert (await store.history(domain))[-1].version == one
        for refused in (store.put("books", b"x"), store.promote({"books": None}), store.kept()):
            with pytest.raises(StoreError, match=r"permission|can't run"):
                await refused
        assert await store.live() == live
        assert len(await store.history("books")) == 2

    with_store(as_user("mdctr-reader"), read)
    for user in ("mdctr-reader", "nobody"):
        with pytest.raises(StoreError) as refused:
            with_store(as_user(user, "hunter2"), lambda store: store.live())
        assert "hunter2" not in str(refused.value)
    remove = ("ACL", "DELUSER", "mdctr-reader", "mdctr-writer")
    ask_all(url, *remove) if kind == "cluster" else redis.ask(*remove)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """An authority of certificates, and the file that others know it by."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, path


def certified(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_over_tls_the_server_must_have_a_certificate_of_an_authority_that_is_trusted(server, authority):
    ca, path = authority
    with tls_proxy(server.port, certified(ca, "127.0.0.1")) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        trusting = f"{url}?ssl_ca_certs={quote(str(path))}"
        versions = with_store(trusting, lambda store: publish(store, books=b""))
        with_store(trusting, lambda store: reads(store, versions))
        pem = quote(path.read_text())
        assert with_store(f"{url}?ssl_ca_data={pem}", lambda store: store.live()) == versions
        assert with_store(f"{url}?ssl_cert_reqs=none", lambda store: store.live()) == versions
        for distrusting in (url, f"{url}?ssl_ca_certs=/nowhere", trusting.replace("127.0.0.1", "localhost")):
            with pytest.raises(StoreError):
                with_store(distrusting, lambda store: store.live())


def test_over_tls_the_server_may_ask_for_our_certificate(server, authority, tmp_path):
    ca, path = authority
    context = certified(ca, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    ours = ca.issue_cert("client@example.org")
    ours.private_key_and_cert_chain_pem.write_to_path(tmp_path / "ours.pem")
    with tls_proxy(server.port, context) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={quote(str(path))}"
        with pytest.raises(StoreError):
            with_store(url, lambda store: store.live())
        file = quote(str(tmp_path / "ours.pem"))
        known = f"{url}&ssl_certfile={file}&ssl_keyfile={file}"
        assert with_store(known, lambda store: store.live()) == {}


def test_a_cluster_is_reached_over_tls(authority):
    ca, path = authority
    while (plain := free_port()) > 55_000:  # a node listens 10,000 above, too
        pass
    with ExitStack() as stack:
        port = stack.enter_context(tls_proxy(plain, certified(ca, "127.0.0.1")))
        announce = ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(port)]
        node = stack.enter_context(
            closing(RedisServer(plain, options=["--cluster-enabled", "yes", *announce]))
        )
        node.start()
        node.ask("CLUSTER", "ADDSLOTS", *range(16_384))
        secure = f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={quote(str(path))}"
        versions = with_store(secure, lambda store: again(lambda: publish(store, books=b"")))
        with_store(secure, lambda store: reads(store, versions))
        with pytest.raises(StoreError):
            with_store(f"rediss+cluster://127.0.0.1:{port}", lambda store: store.live())
