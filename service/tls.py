"""TLS of the listener: a certificate, its key, and where callers have certificates too, who signs theirs."""

from __future__ import annotations

import ssl
from typing import NoReturn

from service.contract.errors import SettingsError
from service.settings import Settings


def context(settings: Settings) -> ssl.SSLContext | None:
    """What connections are made with; None where they are not encrypted.

    TLS 1.2 is the least that is spoken.

    Raises:
        SettingsError: a file cannot be read, or is not what it should be.
    """
    if settings.tls_cert is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    load(made, settings)
    if settings.tls_client_ca is not None:
        try:
            made.load_verify_locations(settings.tls_client_ca)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"MDCTR_TLS_CLIENT_CA: {_reason(error)}") from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def load(made: ssl.SSLContext, settings: Settings) -> None:
    """Take the certificate and its key as they are now; connections that come later get them.

    Raises:
        SettingsError: they cannot be read, do not belong together, or the key has a password.
    """
    if settings.tls_cert is None:
        return
    try:
        made.load_cert_chain(settings.tls_cert, settings.tls_key, _no_password)
    except (OSError, ssl.SSLError, _Locked) as error:
        raise SettingsError(f"MDCTR_TLS_CERT, MDCTR_TLS_KEY: {_reason(error)}") from None


class _Locked(Exception):
    """A key has a password."""


def _no_password() -> NoReturn:
    # Or OpenSSL would ask for it on the terminal, and wait.
    raise _Locked("the key has a password; one without is needed")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not a certificate and its key in PEM ({error.reason or error})"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror}" if error.strerror else str(error)
    return str(error)
