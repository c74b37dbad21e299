"""Bodies that a route reads by itself: no more than is taken, and every fault a problem."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service import problems

JSON = ("application/json",)

Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, most: int, media: Collection[str]) -> bytes:
    """The body of a request.

    Args:
        request: whose.
        most: bytes that are taken.
        media: types that it may have; an empty one stands for none given.

    Raises:
        HTTPException: 413 or 415; 400, which nobody reads, where the caller hung up.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in media:
        raise HTTPException(415, f"the body must be {' or '.join(filter(None, media))}")
    try:
        return await whole(request, most)
    except ClientDisconnect:  # no fault of ours, and no traceback in the log
        raise HTTPException(400, "the caller hung up") from None


async def whole(request: Request, most: int) -> bytes:
    """The body of a request, no more of it than is taken.

    Raises:
        HTTPException: 413.
        ClientDisconnect: the caller hung up.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_large(most)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(most: int) -> HTTPException:
    """A body has more bytes than are taken."""
    return HTTPException(413, f"the body has more than {most} bytes")


async def parse(request: Request, most: int, model: type[Model]) -> Model:
    """The JSON body of a request as a model.

    Raises:
        HTTPException: 400, 413 or 415.
        InvalidRequest: it breaks the schema.
    """
    body = await read(request, most, JSON)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise problems.invalid(error) from None
