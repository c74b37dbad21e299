"""Settings come from `MDCTR_*`, and a mistake in one is an error."""

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_variables_are_read(monkeypatch):
    monkeypatch.setenv("MDCTR_PORT", "9000")
    monkeypatch.setenv("MDCTR_UNKNOWN_DOMAIN", "general")
    settings = Settings()
    assert (settings.port, settings.unknown_domain, settings.host) == (9000, "general", "127.0.0.1")


def test_an_unknown_variable_is_an_error_that_names_it_and_not_its_value(monkeypatch):
    monkeypatch.setenv("MDCTR_STROE", "redis://user:hunter2@host")
    with pytest.raises(ValidationError, match="MDCTR_STROE") as refused:
        Settings()
    assert "hunter2" not in str(refused.value)


def test_a_variable_of_the_training_command_is_not_ours(monkeypatch):
    monkeypatch.setenv("MDCTR_DATA_DIR", "data")
    assert not hasattr(Settings(), "data_dir")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_a_public_address_needs_a_word(host):
    with pytest.raises(ValidationError, match="MDCTR_ALLOW_PUBLIC"):
        Settings(host=host)
    assert Settings(host=host, allow_public=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert Settings(host=host).host == host


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70000}, {"threads": 0}, {"golden_tolerance": 0}, {"unknown_domain": "guess"}, {"more": 1}],
)
def test_values_are_checked(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_are_frozen_and_hide_the_stores_password():
    settings = Settings(store="redis://user:hunter2@host/0")
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
