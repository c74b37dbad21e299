"""What a Redis URL names, and what is refused."""

import ssl

import pytest

from service.contract.errors import UnknownOption
from service.stores._redis_url import parse


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "db"),
    [
        ("redis://cache", "single", (("cache", 6379),), "", 0),
        ("redis://", "single", (("localhost", 6379),), "", 0),
        ("redis://cache:1/7", "single", (("cache", 1),), "", 7),
        ("redis://[::1]:1/", "single", (("::1", 1),), "", 0),
        ("rediss://cache/3", "single", (("cache", 6379),), "", 3),
        ("redis+sentinel://a,b:1/main", "sentinel", (("a", 26379), ("b", 1)), "main", 0),
        ("rediss+sentinel://a/main/2", "sentinel", (("a", 26379),), "main", 2),
        ("redis+cluster://a:1,b,[::1]:2", "cluster", (("a", 1), ("b", 6379), ("::1", 2)), "", 0),
        ("rediss+cluster://a/0", "cluster", (("a", 6379),), "", 0),
    ],
)
def test_a_url_names_hosts_service_and_database(url, kind, hosts, service, db):
    target = parse(url)
    assert (target.kind, target.hosts, target.service, target.db) == (kind, hosts, service, db)
    assert target.client.get("ssl", False) == target.sentinel.get("ssl", False) == url.startswith("rediss")


@pytest.mark.parametrize(
    ("login", "username", "password"),
    [("", None, None), ("ann@", "ann", None), (":a%2Fb@", None, "a/b"), ("a%40b:p:q%3F@", "a@b", "p:q?")],
)
def test_user_and_password_are_percent_encoded(login, username, password):
    for url in (f"redis://{login}a:1", f"redis+sentinel://{login}a,b/s", f"redis+cluster://{login}a,b"):
        target = parse(url)
        assert (target.client["username"], target.client["password"]) == (username, password)
        assert "username" not in target.sentinel
        assert "p:q" not in repr(target)


def test_limits_are_set_unless_the_url_sets_others():
    target = parse("redis://a")
    assert (target.connections, target.client["socket_timeout"]) == (16, 2)
    assert target.client["socket_connect_timeout"] == 2
    target = parse("redis://a?max_connections=3&socket_timeout=0.5&socket_connect_timeout=4&client_name=x")
    assert (target.connections, target.client["socket_timeout"]) == (3, 0.5)
    assert (target.client["socket_connect_timeout"], target.client["client_name"]) == (4, "x")


def test_over_tls_a_certificate_is_checked_unless_the_url_says_otherwise():
    checked = parse("rediss://a").client
    assert (checked["ssl_cert_reqs"], checked["ssl_check_hostname"]) == ("required", True)
    told = parse("rediss://a?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_min_version=772&ssl_ca_certs=f")
    assert (told.client["ssl_cert_reqs"], told.client["ssl_check_hostname"]) == ("none", False)
    assert told.client["ssl_min_version"] is ssl.TLSVersion.TLSv1_3
    assert told.client["ssl_ca_certs"] == "f"


def test_sentinels_have_a_login_of_their_own():
    target = parse("redis+sentinel://u:p@a/s?sentinel_username=x&sentinel_password=y&read_replicas=true")
    assert (target.sentinel["username"], target.sentinel["password"]) == ("x", "y")
    assert (target.client["username"], target.client["password"]) == ("u", "p")
    assert target.read_replicas


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:x",
        "redis://a:70000",
        "redis://a,b",
        "redis://a/x",
        "redis://a/-1",
        "redis://a/0/1",
        "redis://a#x",
        "redis://[a",
        "redis+sentinel://a",
        "redis+sentinel://a,/s",
        "redis+sentinel:///s",
        "redis+cluster://",
        "redis+cluster://a/1",
        "redis+other://a",
        "rediss+ssl://a",
        "redis://a?x",
        "redis://a?nothing=1",
    ],
)
def test_what_names_no_redis_is_refused(url):
    with pytest.raises(UnknownOption):
        parse(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://a?read_replicas=true", "names one server"),
        ("redis://a?ssl_ca_certs=x", "needs TLS"),
        ("redis+cluster://a?sentinel_password=x", "needs sentinels"),
        ("redis://a?socket_timeout=0", "socket_timeout"),
        ("redis://a?socket_timeout=nan", "socket_timeout"),
        ("redis://a?max_connections=0", "max_connections"),
        ("redis://a?socket_keepalive=perhaps", "socket_keepalive"),
        ("rediss://a?ssl_cert_reqs=sometimes", "ssl_cert_reqs"),
        ("rediss://a?ssl_min_version=1", "ssl_min_version"),
        ("redis://a?sockettimeout=1", "socket_timeout"),
    ],
)
def test_an_option_that_does_nothing_is_refused_with_the_reason(url, reason):
    with pytest.raises(UnknownOption, match=reason):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2/x@a:1/0",
        "redis://user:hunter2?x=y@a:1/0",
        "redis://:1?hunter2=x@a:1/0",
        "redis://user:hunter2#x@a:1/0",
        "redis://user:hunter2@a:x/0",
        "redis://user:hunter2@a/x",
        "redis+sentinel://user:hunter2@a",
        "redis+cluster://user:hunter2@a/1",
        "redis+what://user:hunter2@a/1",
        "redis+sentinel://a/s?sentinel_password=hunter2&x=y",
        "redis+cluster://a/?sentinel_password=hunter2",
    ],
)
def test_a_refusal_repeats_no_password(url):
    with pytest.raises(UnknownOption) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
