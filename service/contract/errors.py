"""Every error of the house, in one tree and without HTTP.

* MdctrError
  * UnknownOption       a recipe, setting or URL names an option for which there is no file
  * SchemaError         fields that cannot be declared so, or values that a field cannot hold
  * BundleError         a bundle is missing, damaged, or of a format that this version does not read
  * EngineError         an engine cannot be built here, or its device fails
  * PackError           a pack is damaged, of another bundle, or does not do what it says
  * ItemsError          an item table is damaged, of another bundle, or not one that can be served
  * StoreError          a pack store does not answer, or was asked for something it does not have
    * UnknownVersion
    * Conflict          something else is live than the caller expected
  * RequestError        a request that cannot be scored, and why
    * InvalidRequest    its body breaks the schema: a list of places
    * UnknownDomain
    * NotReady          nothing is loaded yet that could answer
    * DeadlineExceeded  there is no time left to answer in
    * Overloaded        there would be none, so it was not begun
  * RunError            a training run cannot start or go on
  * SettingsError       an `MDCTR_*` variable is unknown or wrong
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class MdctrError(Exception):
    """Anything that mdctr raises on purpose; its text is one line a user can act on."""


class UnknownOption(MdctrError):
    """There is no file for the option named."""


class SchemaError(MdctrError):
    """A field cannot be declared so, or a value does not fit its field."""


class BundleError(MdctrError):
    """A bundle is missing, damaged, or of a format that this version does not read."""


class EngineError(MdctrError):
    """An engine cannot be built here, or its device fails."""


class PackError(MdctrError):
    """A pack is damaged, of another bundle, or does not score as it says."""


class ItemsError(MdctrError):
    """An item table is damaged, of another bundle, or not one that can be served."""


class StoreError(MdctrError):
    """The pack store does not answer."""


class UnknownVersion(StoreError):
    """The pack store has no such version of this domain."""


class Conflict(StoreError):
    """Something else is live than the caller expected; nothing was changed."""


class RunError(MdctrError):
    """A training run cannot start or go on."""


class SettingsError(MdctrError):
    """A setting is unknown, or has a value that it cannot have."""


class RequestError(MdctrError):
    """A request that cannot be scored."""


@dataclass(frozen=True)
class Place:
    """One thing wrong with a request: where (RFC 6901 JSON pointer into the body) and what."""

    pointer: str
    detail: str


class InvalidRequest(RequestError):
    """The body breaks the schema, at the places listed."""

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = tuple(places)
        super().__init__("; ".join(f"{place.pointer}: {place.detail}" for place in self.places))


class UnknownDomain(RequestError):
    """No pack answers for this domain."""

    def __init__(self, domain: str) -> None:
        self.domain = domain
        super().__init__(f"unknown domain {domain!r}")


class NotReady(RequestError):
    """Nothing is loaded yet that could answer."""


class DeadlineExceeded(RequestError):
    """There is no time left to answer in."""


class Overloaded(RequestError):
    """More is asked than can be answered in time; nothing was computed."""
