"""`Question`: what a request asked, as the exposure log keeps it to be scored again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from service.contract.errors import MdctrError
from service.contract.field import Column
from service.features import Ids


class QuestionError(MdctrError):
    """A logged request is none that we wrote."""


class Question(NamedTuple):
    """The parts of a request that its scores follow from."""

    user: Mapping[str, Any]
    """With what was kept of the user."""
    context: Mapping[str, Any]
    ids: Ids | None
    """(B,) that were asked for; None where all were answered, in their order."""
    items: Mapping[str, Column]
    """Columns of B values by field."""


def to_bytes(question: Question) -> bytes:
    """A question as JSON: an object of its parts."""
    return msgspec.json.encode(question._asdict(), enc_hook=_plain)


def from_bytes(data: bytes) -> Question:
    """What `to_bytes` made.

    Raises:
        QuestionError: it is something else.
    """
    try:
        return Question(**msgspec.json.decode(data))
    except (msgspec.DecodeError, TypeError):
        raise QuestionError("what was asked is not as the log has it") from None


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(type(value).__name__)
