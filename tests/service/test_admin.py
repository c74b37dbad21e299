"""The admin API, route by route."""

import json
from functools import partial

import pytest

from loadtest.redis_server import redis_server
from service import lifecycle
from service.contract.pack import GENERAL, version
from tests.service import bundles
from tests.service.bad_packs import BAD
from tests.service.conftest import running
from tests.service.experiments.documents import document, experiment
from tests.service.test_problems import problem
from tests.service.waiting import eventually

KEY = "ann-0123456789abcdef0"
ADMIN = {"X-API-Key": KEY}


class Admin:
    """A client with an admin's key."""

    def __init__(self, service):
        self.service = service

    def get(self, path, **query):
        return self.service.client.get(f"/v1/admin/{path}", params=query, headers=ADMIN)

    def post(self, path, **body):
        return self.service.client.post(f"/v1/admin/{path}", json=body, headers=ADMIN)

    def put(self, data, domain="books", media="application/octet-stream", **query):
        headers = ADMIN | ({"content-type": media} if media else {})
        path = f"/v1/admin/domains/{domain}/packs"
        return self.service.client.put(path, content=data, params=query, headers=headers)

    def promoted(self, *seeds, domain="books"):
        """Put packs and promote them one after the other; their versions."""
        versions = []
        for seed in seeds:
            put = self.put(bundles.make_pack(domain, seed).to_bytes(), domain)
            assert put.status_code == 201, put.text
            versions.append(put.json()["version"])
            assert self.post("promote", versions={domain: versions[-1]}).status_code == 200
        return versions


@pytest.fixture
def admin(start):
    return Admin(start(admin_keys={"ann": KEY}))


def live(admin, domain="books"):
    return admin.get(f"domains/{domain}").json()["live"]


def test_a_pack_is_put_promoted_served_and_rolled_back(admin):
    pack = bundles.make_pack("books", 5)
    first = live(admin)
    put = admin.put(pack.to_bytes(), version=version(pack.to_bytes()))
    assert put.status_code == 201
    assert put.json() == {
        "domain": "books",
        "version": version(pack.to_bytes()),
        "bytes": len(pack.to_bytes()),
    }
    assert put.headers["location"] == f"/v1/admin/domains/books/packs/{version(pack.to_bytes())}"
    holds = admin.service.client.get(put.headers["location"], headers=ADMIN).json()
    assert (holds["version"], holds["golden_rows"]) == (version(pack.to_bytes()), 8)
    assert live(admin) == first
    done = admin.post(
        "promote", versions={"books": put.json()["version"][:6]}, run="night 1", expected={"books": first}
    )
    assert done.json() == [{"domain": "books", "before": first, "after": version(pack.to_bytes())}]
    eventually(partial(admin.service.serves, pack))
    last = admin.get("domains/books").json()["history"][-1]
    assert (last["version"], last["run"], last["by"]) == (version(pack.to_bytes()), "night 1", "ann")
    assert admin.post("rollback", domains=["books"]).json()[0]["after"] == first
    eventually(partial(admin.service.serves, bundles.make_pack("books")))
    last = admin.get("domains/books").json()["history"][-1]
    assert (last["run"], last["by"]) == (f"rollback of {version(pack.to_bytes())}", "ann")


def test_the_overview_and_a_domains_history(admin):
    one, two = admin.promoted(1, 2)
    lines = {line["domain"]: line for line in admin.get("packs").json()}
    assert lines.keys() == {GENERAL, "books", "films"}
    assert (lines["books"]["live"], lines["books"]["by"], lines["books"]["kept"]) == (two, "ann", 3)
    shown = admin.get("domains/books").json()
    assert (shown["live"], shown["previous"]) == (two, one)
    assert [step["version"] for step in shown["history"]][1:] == [one, two]
    assert len(shown["kept"]) == 3
    assert admin.get(f"domains/{GENERAL}").status_code == 200


def test_putting_again_changes_nothing_and_no_media_type_is_needed(admin):
    data = bundles.make_pack("books", 5).to_bytes()
    answers = [
        admin.put(data, media=media)
        for media in ("application/octet-stream", None, "Application/Octet-Stream; x=y")
    ]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["version"] for answer in answers}) == 1
    assert len(admin.get("domains/books").json()["kept"]) == 2


def test_a_new_domain_is_put_and_served(admin):
    admin.promoted(1, domain="cooking")
    eventually(lambda: admin.service.rank("cooking").status_code == 200)


@pytest.mark.parametrize("why", BAD)
def test_a_bad_pack_is_422_with_its_reason_and_is_not_kept(admin, why):
    data, reason = BAD[why]
    if why == "larger than any pack":
        problem(admin.put(data), 413, "body-too-large")
    else:
        assert reason in problem(admin.put(data), 422, "pack-refused")["detail"]
    assert len(admin.get("domains/books").json()["kept"]) == 1


def test_a_pack_of_another_domain_or_hash_than_announced_is_422(admin):
    data = bundles.make_pack("books", 5).to_bytes()
    assert "of domain 'books'" in problem(admin.put(data, "films"), 422, "pack-refused")["detail"]
    assert "its content is" in problem(admin.put(data, version="0" * 16), 422, "pack-refused")["detail"]
    problem(admin.put(data, media="application/json"), 415, "unsupported-media-type")
    assert len(admin.get("domains/books").json()["kept"]) == 1


def test_a_check_leaves_the_loop_to_others(admin, monkeypatch):
    """While a pack is checked in a thread, requests are answered."""
    answers = []
    check = lifecycle.check

    def slow(*given, **named):
        answers.append(admin.service.rank().status_code)  # asked and answered during the check
        return check(*given, **named)

    monkeypatch.setattr(lifecycle, "check", slow)
    assert admin.put(bundles.make_pack("books", 5).to_bytes()).status_code == 201
    assert answers == [200]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("promote", {"versions": {"books": "0" * 16}}),
        ("promote", {"versions": {"books": "0000"}}),
        ("promote", {"versions": {"cooking": "0000"}}),
        ("promote", {"versions": {"../x": "0" * 16}}),
        ("rollback", {"domains": ["books"]}),
        ("rollback", {"domains": ["cooking"]}),
        ("rollback", {"domains": ["books"], "to": "0" * 16}),
        ("retire", {"domains": ["cooking"]}),
    ],
    ids=str,
)
def test_what_the_store_does_not_have_is_404(admin, route, body):
    before = live(admin)
    problem(admin.post(route, **body), 404, "unknown-version")
    assert live(admin) == before


@pytest.mark.parametrize(
    "path",
    [
        "domains/cooking",
        "domains/..%2Fx",
        "domains/cooking/diff",
        "domains/books/diff",
        "domains/books/diff?a=0000",
        "domains/books/diff?a=x&b=y",
        "domains/..%2Fx/diff?a=0000&b=0000",
        "domains/books/packs/0000000000000000",
        "domains/books/packs/*",
    ],
)
def test_what_is_not_there_is_404(admin, path):
    slug = "not-found" if "%2F" in path else "unknown-version"
    problem(admin.service.client.get(f"/v1/admin/{path}", headers=ADMIN), 404, slug)


def test_another_live_version_than_expected_is_409(admin):
    one, two = admin.promoted(1, 2)
    for expected in ({"books": one}, {"books": None}):
        answer = admin.post("promote", versions={"books": one}, expected=expected)
        assert two in problem(answer, 409, "conflict")["detail"]
    assert live(admin) == two


@pytest.mark.parametrize(
    ("route", "body", "place"),
    [
        ("promote", {}, "/versions"),
        ("promote", {"versions": {}}, "/versions"),
        ("promote", {"versions": {"books": "abc"}}, "/versions/books"),
        ("promote", {"versions": {"books": None}}, "/versions/books"),
        ("promote", {"versions": {"books": "ABCDEF"}}, "/versions/books"),
        ("promote", {"versions": {"books": "0000"}, "by": "me"}, "/by"),
        ("promote", {"versions": {"books": "0000"}, "run": "x" * 257}, "/run"),
        ("rollback", {"domains": []}, "/domains"),
        ("rollback", {"domains": ["books", "films"], "to": "0000"}, ""),
        ("retire", {"domains": "books"}, "/domains"),
        ("gc", {"keep": -1}, "/keep"),
        ("gc", {"keep": "5"}, "/keep"),
        ("gc", {"dry_run": 1}, "/dry_run"),
    ],
    ids=str,
)
def test_a_body_that_breaks_the_schema_is_422_at_its_place(admin, route, body, place):
    found = problem(admin.post(route, **body), 422, "invalid-request")
    assert found["errors"][0]["pointer"] == place


def test_a_body_that_is_no_json_is_refused(admin):
    client, path = admin.service.client, "/v1/admin/gc"
    problem(
        client.post(path, content="{", headers=ADMIN | {"content-type": "application/json"}),
        400,
        "malformed-body",
    )
    problem(client.post(path, content="{}", headers=ADMIN), 415, "unsupported-media-type")


def test_a_retired_domain_is_no_longer_live(admin):
    done = admin.post("retire", domains=["films"], run="closed").json()
    assert [(each["domain"], each["after"]) for each in done] == [("films", None)]
    shown = admin.get("domains/films").json()
    assert (shown["live"], shown["history"][-1]["run"]) == (None, "closed")
    assert len(shown["kept"]) == 1
    problem(admin.post("retire", domains=["films"]), 404, "unknown-version")
    assert admin.post("rollback", domains=["films"]).status_code == 200


def test_versions_are_compared(admin):
    one, two = admin.promoted(1, 2)
    found = admin.get("domains/books/diff").json()
    assert (found["a"], found["b"]) == (one, two)
    assert {each["name"] for each in found["tensors"]} == set(bundles.OWNED)
    assert found["golden"]["rows"] == 8
    assert found["golden"]["largest"] > 0
    turned = admin.get("domains/books/diff", a=two[:8], b=one[:8]).json()
    assert (turned["a"], turned["b"]) == (two, one)
    assert turned["tensors"] == found["tensors"]


def test_a_damaged_pack_in_the_store_is_422(admin, tmp_path):
    (one,) = admin.promoted(1)
    [path] = (tmp_path / "store").rglob(f"books/{one}.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert "its content is" in problem(admin.get(f"domains/books/packs/{one}"), 422, "pack-refused")["detail"]
    problem(admin.get("domains/books/diff"), 422, "pack-refused")


def test_a_collection_removes_what_nothing_needs(admin):
    versions = admin.promoted(1, 2, 3)
    (waiting,) = [admin.put(bundles.make_pack("books", 4).to_bytes()).json()["version"]]
    planned = admin.post("gc", keep=2, dry_run=True).json()
    assert versions[0] in {pack["version"] for pack in planned}
    assert len(admin.get("domains/books").json()["kept"]) == 5
    assert admin.post("gc", keep=2).json() == planned
    kept = {pack["version"] for pack in admin.get("domains/books").json()["kept"]}
    assert kept == {*versions[1:], waiting}
    assert [pack["version"] for pack in admin.post("gc", keep=2, unpromoted=True).json()] == [waiting]
    assert admin.post("gc").json() == []
    eventually(partial(admin.service.serves, bundles.make_pack("books", 3)))


def test_a_collection_spares_what_experiments_name(start, tmp_path):
    where = tmp_path / "experiments.json"
    admin = Admin(start(admin_keys={"ann": KEY}, experiments=str(where)))
    one, two, _ = admin.promoted(1, 2, 3)
    arms = {"a": {"weight": 1}, "b": {"weight": 1, "version": {"books": one}}}
    where.write_text(json.dumps(document([experiment("trial", domains=["books"], arms=arms)])))
    assert one not in {pack["version"] for pack in admin.post("gc", keep=0, dry_run=True).json()}
    where.write_text("{")
    problem(admin.post("gc", keep=0), 409, "conflict")
    assert {one, two} <= {pack["version"] for pack in admin.get("domains/books").json()["kept"]}
    where.unlink()
    assert {one, two} <= {pack["version"] for pack in admin.post("gc", keep=0).json()}


def test_a_store_that_does_not_answer_is_503_and_says_when_to_ask_again(bundle):
    with running(bundle, "redis://127.0.0.1:1/0", admin_keys={"ann": KEY}) as service:
        admin = Admin(service)
        answers = [
            admin.get("packs"),
            admin.get("domains/books"),
            admin.get("domains/books/diff"),
            admin.put(bundles.make_pack("books", 5).to_bytes()),
            admin.post("promote", versions={"books": "0" * 16}),
            admin.post("rollback", domains=["books"]),
            admin.post("retire", domains=["books"]),
            admin.post("gc"),
        ]
        for answer in answers:
            problem(answer, 503, "store-unavailable")
            assert int(answer.headers["retry-after"]) > 0


def test_it_is_the_same_over_redis(bundle):
    with redis_server() as url, running(bundle, url, admin_keys={"ann": KEY}) as service:
        admin = Admin(service)
        one, two = admin.promoted(1, 2)
        assert admin.post("rollback", domains=["books"]).json()[0]["after"] == one
        assert admin.post("promote", versions={"books": two[:5]}, expected={"books": one}).status_code == 200
        problem(admin.post("promote", versions={"books": one}, expected={"books": None}), 409, "conflict")
        assert admin.get("domains/books/diff").json()["a"] == one
        assert [line["live"] for line in admin.get("packs").json()] == [two]
        assert admin.post("retire", domains=["books"]).status_code == 200
        assert len(admin.post("gc", keep=0).json()) == 2


def test_what_was_done_and_by_whom_is_in_the_log(admin, capfd):
    (one,) = admin.promoted(1)
    admin.post("rollback", domains=["books"])
    lines = capfd.readouterr()
    text = lines.out + lines.err
    assert one in text
    assert "rollback" in text
    assert "ann" in text
    assert KEY not in text
