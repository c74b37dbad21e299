"""Secrets as files: read at the start, and keys again when their files change, without a restart."""

import json
import os

import pytest
from pydantic import ValidationError

from service import rotation
from service.contract.errors import SettingsError
from service.rotation import Rotation
from service.security import KeyRing
from service.settings import Settings
from tests.service.test_tls import serving
from tests.service.waiting import eventually

OLD, NEW, ADMIN = "old-0123456789abcdef", "new-0123456789abcdef", "admin-0123456789abcd"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "secrets"
    made.mkdir()
    write(made, "mdctr_rank_keys", json.dumps({"old": OLD}))
    return made


def write(folder, name, text):
    """Replace a file, as a mounted secret is: another file takes its name."""
    part = folder / f".{name}"
    part.write_text(text)
    part.replace(folder / name)


def test_settings_come_from_files(folder):
    write(folder, "mdctr_store", "redis://:hunter22@host/0\n")
    write(folder, "mdctr_force_secret", f"{NEW}\n")
    write(folder, "another_programs", "x")
    (folder / "..data").mkdir()
    settings = Settings(secrets_dir=folder)
    assert settings.rank_keys["old"].get_secret_value() == OLD
    assert settings.store == "redis://:hunter22@host/0"
    assert settings.force_secret is not None
    assert settings.force_secret.get_secret_value() == NEW
    assert settings.admin_keys == {}
    assert not any(secret in repr(settings) for secret in (OLD, NEW, "hunter22"))
    assert Settings(secrets_dir=folder, host="0.0.0.0").host == "0.0.0.0"


def test_the_folder_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("MDCTR_SECRETS_DIR", str(folder))
    assert list(Settings().rank_keys) == ["old"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mdctr_port", "1", "mdctr_port is not a setting that may be a file"),
        ("mdctr_rank_key", OLD, "mdctr_rank_key is not a setting"),
        ("mdctr_rank_keys", OLD, "not JSON"),
        ("mdctr_rank_keys", '{"a": "never-short"}', "at least 16"),
        ("mdctr_admin_keys", json.dumps({"a": OLD}), "the same secret"),
        ("mdctr_admin_keys", "x" * 1_000_001, "more than 1000000 bytes"),
    ],
)
def test_what_a_file_may_not_hold_is_an_error_that_does_not_repeat_it(folder, name, text, says):
    write(folder, name, text)
    with pytest.raises(ValidationError, match=says) as refused:
        Settings(secrets_dir=folder)
    assert OLD not in str(refused.value)
    assert "never" not in str(refused.value)


def test_files_that_cannot_be_read_are_an_error(folder, tmp_path):
    (folder / "mdctr_admin_keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ValidationError, match="mdctr_admin_keys is not a text"):
        Settings(secrets_dir=folder)
    (folder / "mdctr_admin_keys").unlink()
    (folder / "mdctr_admin_keys").symlink_to(tmp_path / "gone")
    with pytest.raises(ValidationError, match="No such file"):
        Settings(secrets_dir=folder)
    with pytest.raises(ValidationError, match="No such file"):
        Settings(secrets_dir=tmp_path / "nowhere")


def test_a_setting_is_not_given_twice(folder, monkeypatch):
    monkeypatch.setenv("MDCTR_RANK_KEYS", json.dumps({"a": NEW}))
    with pytest.raises(ValidationError, match="a file of secrets_dir, and a variable: rank_keys"):
        Settings(secrets_dir=folder)


# Again


@pytest.fixture
def ring(folder):
    """A ring of the files' keys, and what looks at them."""
    settings = Settings(secrets_dir=folder, admin_keys={"ann": ADMIN})
    keys = KeyRing(settings)
    return keys, Rotation(settings, keys, None)


def test_keys_are_taken_over_and_others_stay(ring, folder):
    keys, rotation = ring
    write(folder, "mdctr_rank_keys", json.dumps({"old": OLD, "new": NEW}))
    assert keys.find(NEW) is None
    rotation.look()
    assert (keys.find(OLD).name, keys.find(NEW).name, keys.find(ADMIN).name) == ("old", "new", "ann")
    write(folder, "mdctr_rank_keys", json.dumps({"new": NEW}))
    rotation.look()
    assert keys.find(OLD) is None
    assert keys.find(NEW).name == "new"


@pytest.mark.parametrize(
    "text", ["", "{}", "{", '{"new": "short"}', json.dumps({"new": ADMIN}), json.dumps({"ann": NEW})]
)
def test_what_is_wrong_changes_nothing_and_is_said_once(ring, folder, text, monkeypatch):
    said = []
    monkeypatch.setattr(
        rotation.log, "error", lambda event, **fields: said.append((event, fields)), raising=False
    )
    keys, looking = ring
    write(folder, "mdctr_rank_keys", text)
    for _ in range(3):
        looking.look()
    assert keys.find(OLD).name == "old"
    assert not keys.rank_is_open
    assert [event for event, _ in said] == ["keys: not taken over"]
    assert not any(secret in str(said) for secret in (OLD, NEW, ADMIN, "short"))


def test_a_file_that_goes_opens_nothing(ring, folder):
    keys, rotation = ring
    (folder / "mdctr_rank_keys").unlink()
    rotation.look()
    assert keys.find(OLD).name == "old"
    assert not keys.rank_is_open


def test_what_did_not_change_is_not_read(ring, folder, monkeypatch):
    _, rotation = ring
    monkeypatch.setattr(Settings, "again", lambda self: pytest.fail("it is read"))
    rotation.look()
    os.utime(folder, (1, 1))
    rotation.look()


def test_ranking_is_not_opened_by_a_file(folder):
    write(folder, "mdctr_admin_keys", json.dumps({"ann": ADMIN}))
    settings = Settings(secrets_dir=folder)
    write(folder, "mdctr_rank_keys", "{}")
    with pytest.raises(SettingsError, match="everybody might rank"):
        settings.again()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_worker_of_a_service_takes_them_over(bundle, publish, folder, tmp_path, workers):
    import httpx2

    settings = {"MDCTR_WORKERS": workers, "MDCTR_SECRETS_DIR": str(folder)}
    with serving(bundle, publish.url, tmp_path, **settings) as (port, _):
        url = f"http://127.0.0.1:{port}/v1/domains"

        def allowed(key):
            """The statuses of some new connections."""
            try:
                return {httpx2.get(url, headers={"X-API-Key": key}, timeout=5).status_code for _ in range(12)}
            except httpx2.TransportError:
                return set()

        eventually(lambda: allowed(OLD) == {200}, 40)
        assert allowed(NEW) == {401}
        write(folder, "mdctr_rank_keys", json.dumps({"new": NEW}))
        eventually(lambda: allowed(NEW) == {200}, 40)
        eventually(lambda: allowed(OLD) == {401}, 40)
    text = (tmp_path / "log").read_text()
    assert "taken over" in text
    assert not any(secret in text for secret in (OLD, NEW))
