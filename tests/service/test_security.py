"""API keys: who gets in, who does not, and what is never shown."""

import hmac
import json
import logging

import pytest
from pydantic import ValidationError

from service.security import Key, KeyRing, Scope
from service.settings import Settings
from tests.service.conftest import running
from tests.service.test_problems import problem
from tests.service.waiting import eventually

RANK = {"shop": "shop-0123456789abcdef", "shop-next": "shop-next-0123456789"}
ADMIN = {"ann": "ann-0123456789abcdef0", "job": "job-0123456789abcdef0"}
SECRETS = [*RANK.values(), *ADMIN.values()]


@pytest.fixture(scope="module")
def guarded(bundle, tmp_path_factory):
    """A service with keys of both kinds."""
    url = f"directory:{tmp_path_factory.mktemp('guarded')}"
    with running(bundle, url, rank_keys=RANK, admin_keys=ADMIN) as service:
        yield service


def ask(service, path, headers=None):
    return service.client.get(path, headers=headers)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("way", ["X-API-Key", "bearer", "Bearer"])
def test_every_key_is_good_for_ranking_either_way(guarded, secret, way):
    headers = {"X-API-Key": secret} if way == "X-API-Key" else {"Authorization": f"{way} {secret}"}
    assert ask(guarded, "/v1/domains", headers).status_code == 200
    # Past the key, it is the domain that is not there.
    answer = guarded.rank("cooking", headers=headers)
    assert problem(answer, 404, "unknown-domain")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "nobody-0123456789abc"},
        {"X-API-Key": RANK["shop"][:-1]},
        {"X-API-Key": RANK["shop"] + "x"},
        {"X-API-Key": "shop"},
        {"Authorization": RANK["shop"]},
        {"Authorization": f"Basic {RANK['shop']}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nobody-0123456789abc"},
        {"X-API-Key": b"\xff\xfe" * 10},
        {"X-API-Key": "x" * 10_000},
        {"X-API-Key": "nobody-0123456789abc", "Authorization": f"Bearer {RANK['shop']}"},
    ],
    ids=lambda headers: str(headers)[:40],
)
@pytest.mark.parametrize("path", ["/v1/domains", "/v1/admin/packs"])
def test_a_missing_or_unknown_key_is_401(guarded, headers, path):
    answer = ask(guarded, path, headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_rank_key_is_403_for_the_admin_api_and_an_admin_key_is_not(guarded):
    answer = ask(guarded, "/v1/admin/packs", {"X-API-Key": RANK["shop"]})
    assert "key shop may rank only" in problem(answer, 403, "forbidden")["detail"]
    assert ask(guarded, "/v1/admin/packs", {"X-API-Key": ADMIN["ann"]}).status_code == 200


def test_nothing_is_read_or_told_before_the_key(guarded):
    body = problem(guarded.client.post("/v1/domains/cooking/rank", content="{"), 401, "unauthenticated")
    assert "cooking" not in body["detail"]
    problem(guarded.client.put("/v1/admin/domains/books/packs", content=b"x"), 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/info", "/docs", "/openapi.json"])
def test_operations_stay_open(guarded, path):
    assert ask(guarded, path).status_code in {200, 503}


def test_without_rank_keys_everybody_ranks_and_without_admin_keys_nobody_administers(shared):
    assert shared.rank().status_code == 200
    assert shared.rank(headers={"X-API-Key": "whatever"}).status_code == 200
    for headers in ({}, {"X-API-Key": ADMIN["ann"]}):
        body = problem(ask(shared, "/v1/admin/packs", headers), 403, "forbidden")
        assert "no admin key is configured" in body["detail"]


def test_admin_keys_alone_leave_ranking_open(start):
    service = start(admin_keys=ADMIN)
    assert service.rank().status_code == 200
    assert ask(service, "/v1/admin/packs").status_code == 401


def test_every_route_is_guarded_as_its_path_says(guarded):
    document = guarded.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = guarded.client.request(method, path.format(domain="books", version="abcd", model="tiny"))
            if path.startswith(("/v1/admin", "/v1/domains", "/v1/events")) or path.endswith("/infer"):
                assert answer.status_code == 401, path
                assert "401" in operation["responses"]
                assert {"key": []} in operation["security"]
                assert {"bearer": []} in operation["security"]
                assert ({} in operation["security"]) != path.startswith("/v1/admin")
            else:
                assert answer.status_code != 401, path
                assert "security" not in operation
    assert document["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"


# Comparing


def ring():
    return KeyRing(Settings(rank_keys=RANK, admin_keys=ADMIN))


def test_a_key_is_found_with_its_name_and_scope():
    assert ring().find(RANK["shop"]) == Key("shop", Scope.RANK)
    assert ring().find(ADMIN["job"]) == Key("job", Scope.ADMIN)
    assert ring().find("shop") is None
    assert ring().find("") is None


@pytest.mark.parametrize("secret", [*SECRETS, "nobody", ""])
def test_which_key_it_is_does_not_change_what_is_compared(monkeypatch, secret):
    compared = []

    def counted(known, given):
        compared.append((len(known), len(given)))
        return original(known, given)

    original = hmac.compare_digest
    keys = ring()
    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys.find(secret)
    # Every key once, and digests, whose length tells nothing of a secret's.
    assert compared == [(32, 32)] * len(SECRETS)


# Settings


def test_keys_come_from_the_environment_as_json(monkeypatch):
    monkeypatch.setenv("MDCTR_RANK_KEYS", json.dumps(RANK))
    monkeypatch.setenv("MDCTR_ADMIN_KEYS", "")
    settings = Settings()
    assert {name: secret.get_secret_value() for name, secret in settings.rank_keys.items()} == RANK
    assert settings.admin_keys == {}


SECRET = "never-to-be-shown-1"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (SECRET, "not JSON"),
        ("[" * 100_000 + SECRET, "not JSON"),
        (f'["{SECRET}"]', "dictionary"),
        (f'"{SECRET}"', "dictionary"),
        ('{"a": "never-to-be-shown"', "not JSON"),
        ('{"a": "never-too-short"}', "at least 16"),
        (f'{{"": "{SECRET}"}}', "match pattern"),
        (f'{{"a b": "{SECRET}"}}', "match pattern"),
        (f'{{"a": ["{SECRET}"]}}', "string"),
        (f'{{"a": "{SECRET} and more"}}', "printable ASCII"),
        (f'{{"a": "{SECRET}é"}}', "printable ASCII"),
        (f'{{"a": "{SECRET}\\n"}}', "printable ASCII"),
        (f'{{"a": "{SECRET}", "a": "{SECRET}2"}}', "stands twice"),
        (f'{{"a": "{SECRET}", "b": "{SECRET}"}}', "the same secret"),
    ],
    ids=lambda value: value[:30],
)
def test_wrong_keys_are_an_error_that_does_not_repeat_them(monkeypatch, given, says):
    monkeypatch.setenv("MDCTR_ADMIN_KEYS", given)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert says in str(refused.value)
    assert "never-to" not in str(refused.value)


def test_a_name_or_secret_cannot_stand_in_both_scopes():
    with pytest.raises(ValidationError, match="the same secret"):
        Settings(rank_keys={"a": SECRET}, admin_keys={"b": SECRET})
    with pytest.raises(ValidationError, match="the same name"):
        Settings(rank_keys={"a": SECRET}, admin_keys={"a": SECRET + "2"})


def test_a_public_address_is_allowed_with_rank_keys():
    assert Settings(host="0.0.0.0", rank_keys=RANK).host == "0.0.0.0"
    with pytest.raises(ValidationError, match="MDCTR_RANK_KEYS"):
        Settings(host="0.0.0.0", admin_keys=ADMIN)


# What is shown


def test_settings_never_show_a_secret():
    settings = Settings(rank_keys=RANK, admin_keys=ADMIN)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump(mode='json')}"
    shown += settings.model_dump_json() + repr(KeyRing(settings).find(RANK["shop"]))
    assert not any(secret in shown for secret in SECRETS)


def test_logs_have_the_keys_names_and_never_a_secret(bundle, publish, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with running(bundle, publish.url, rank_keys=RANK, admin_keys=ADMIN) as service:
        key = {"X-API-Key": RANK["shop"]}
        eventually(service.ready)
        assert service.rank(headers=key).status_code == 200
        service.rank(headers={"Authorization": f"Bearer {ADMIN['ann']}"})
        wrong = "wrong-" + RANK["shop"]
        service.rank(headers={"X-API-Key": wrong})
        ask(service, "/v1/admin/packs", {"X-API-Key": ADMIN["job"]})
    out = "".join(capfd.readouterr()) + caplog.text
    assert "starts" in out
    assert "shop" in out
    assert "ann" in out
    assert "job" in out
    assert not any(secret in out for secret in [*SECRETS, wrong])
