"""`Rotation`: keys and certificates that stand in files, taken over when the files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import structlog

from service import tls
from service.contract.errors import SettingsError
from service.security import KeyRing
from service.settings import Settings

log = structlog.get_logger()

_Stamp = tuple[int, int, int] | None
"""What changes when a file is replaced; None where there is none."""


class Rotation:
    """Looks at the files that a service was started with.

    What cannot be taken over changes nothing, and is logged once: the keys and the certificate from before
    stay good. A file that is removed changes nothing either, so that no mistake opens what was closed.
    """

    def __init__(self, settings: Settings, keys: KeyRing, context: ssl.SSLContext | None) -> None:
        """Begin with what was read at the start.

        Args:
            settings: that name the files.
            keys: the ring to change.
            context: of TLS; None without.
        """
        self._settings, self._keys, self._context = settings, keys, context
        self._of_keys = [settings.secrets_dir / name for name in KEYS] if settings.secrets_dir else []
        self._of_tls = [path for path in (settings.tls_cert, settings.tls_key) if path is not None]
        self._seen = _stamps(self._of_keys), _stamps(self._of_tls)

    def look(self) -> None:
        """Take over what changed since the last look."""
        before, self._seen = self._seen, (_stamps(self._of_keys), _stamps(self._of_tls))
        if self._seen[0] != before[0]:
            self._try(self._take_keys, "keys")
        if self._context is not None and self._seen[1] != before[1]:
            self._try(partial(tls.load, self._context, self._settings), "the certificate")

    def _try(self, take: Callable[[], None], what: str) -> None:
        reason = ""
        try:
            take()
        except SettingsError as error:
            reason = str(error)
        if reason:
            log.error(f"{what}: not taken over", reason=reason)
        else:
            log.info(f"{what}: taken over", keys=self._keys.names)

    def _take_keys(self) -> None:
        self._keys.take(self._settings.again())


KEYS = ("mdctr_rank_keys", "mdctr_admin_keys")
"""Files of a folder of secrets that are read again."""


def _stamps(paths: Iterable[Path]) -> list[_Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
