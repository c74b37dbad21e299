"""What an inference request of the Open Inference Protocol asks of the scorer, and the scorer's answer.

Inputs are the schema's fields by their keys, and `ids`. Nothing here knows of HTTP but the name of a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from service.api import tensors
from service.api.oip_schemas import (
    LARGEST,
    InferenceInput,
    InferenceOutput,
    InferenceRequest,
    InferenceResponse,
    TensorParameters,
)
from service.api.tensors import BYTES, NUMBERS, Malformed, TensorError, Values
from service.contract.bundle import Bundle
from service.contract.errors import InvalidRequest, Place
from service.contract.field import Column, Field
from service.scoring import Ranking

IDS, PROBABILITIES = "ids", "probabilities"
_INTEGERS = frozenset(name for name, dtype in NUMBERS.items() if dtype.kind in "iu")
_TAKES: Mapping[str, tuple[frozenset[str], str]] = {
    "number": (frozenset(NUMBERS), "a type of numbers"),
    "int": (_INTEGERS, "a type of integers"),
    "str": (frozenset({BYTES}), BYTES),
}
"""By what a value is, the datatypes that hold it, and what they are called."""


@dataclass(frozen=True)
class Asked:
    """An inference request, as the scorer takes it."""

    domain: str
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    ids: Values
    """int64 or texts, as the bundle's item table has them."""
    items: Mapping[str, Column]
    top_k: int | None
    unit: str | None
    id: str | None
    outputs: tuple[tuple[str, bool], ...]
    """Names, and whether each travels as bytes."""


class Answer(NamedTuple):
    """The body of an answer."""

    content: bytes
    header_length: int | None
    """Bytes of it that are JSON, if others follow."""


class Described(NamedTuple):
    """A tensor of the model; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


_decode = msgspec.json.Decoder(InferenceRequest).decode
_encode = msgspec.json.Encoder().encode


def version(bundle: Bundle) -> str:
    """The one version of the model: the hash in the bundle's id."""
    return bundle.manifest.bundle.removeprefix(f"{bundle.manifest.name}-")


def inputs(bundle: Bundle) -> list[Described]:
    """What a request may give: `ids`, which it must, and the fields."""
    found = [Described(IDS, _datatype(bundle.items.dtype), [-1])]
    for field in bundle.schema.fields:
        if field.key != "item.id":  # that is `ids`
            shape = [-1 if field.scope == "item" else 1]
            if field.multiple or field.size:
                shape.append(field.size or -1)
            found.append(Described(field.key, _datatype(_type(field)), shape))
    return found


def outputs(bundle: Bundle) -> list[Described]:
    """What an answer may have."""
    return [Described(PROBABILITIES, "FP32", [-1]), Described(IDS, _datatype(bundle.items.dtype), [-1])]


def read(body: bytes, header_length: str | None, bundle: Bundle) -> Asked:
    """Take a request apart.

    Args:
        body: JSON, and the bytes of tensors after it.
        header_length: the header `Inference-Header-Content-Length`: how much of the body is JSON.
        bundle: whose fields are asked for.

    Raises:
        Malformed: the body is not JSON, or has not the bytes that it announces.
        InvalidRequest: something in it is not what the protocol, or the model, takes.
    """
    end = _json_length(header_length, len(body))
    try:
        given = _decode(body if end == len(body) else memoryview(body)[:end])
    except msgspec.ValidationError as error:
        raise InvalidRequest([Place("", _short(str(error)))]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the body does not begin with JSON: {error}") from None
    if given.model_name not in {None, bundle.manifest.name}:
        raise InvalidRequest([Place("model_name", "it is not the path's")])
    found = _tensors(given.inputs, body, end)
    if IDS not in found:
        raise InvalidRequest([Place(IDS, "is missing")])
    ids = _ids(*found.pop(IDS), bundle)
    columns: dict[str, dict[str, Any]] = {"user": {}, "context": {}, "item": {}}
    slots = bundle.schema.slots
    for key, (tensor, values) in found.items():
        owner, _, name = key.partition(".")
        if key in slots:
            columns[owner][name] = _values(slots[key].field, tensor, values, len(ids))
        elif key == "user.id":  # whether or not it is a field
            columns[owner][name] = _value(tensor, values, _INTEGERS | {BYTES}, "integers or BYTES")
        else:
            raise InvalidRequest([Place(_short(key), "no such input")])
    parameters = given.parameters
    return Asked(
        parameters.domain,
        columns["user"],
        columns["context"],
        ids,
        columns["item"],
        parameters.top_k,
        parameters.unit,
        given.id,
        _outputs(given),
    )


def write(
    asked: Asked,
    ranking: Ranking,
    bundle: Bundle,
    *,
    by: str,
    experiment: str | None = None,
    arm: str | None = None,
) -> Answer:
    """Put an answer together.

    Args:
        asked: the request.
        ranking: what the scorer says.
        bundle: that was asked for.
        by: the id of the one that scored.
        experiment: that the request was in, if any.
        arm: its arm there.
    """
    outputs, chunks = [], [b""]
    for name, binary in asked.outputs:
        datatype = "FP32" if name == PROBABILITIES else _datatype(bundle.items.dtype)
        values: Values
        if name == PROBABILITIES:
            values = np.asarray(ranking.probabilities, np.float32)
        else:
            values = [*map(str, ranking.ids)] if datatype == BYTES else np.asarray(ranking.ids, np.int64)
        output = InferenceOutput(name, datatype, [len(values)])
        if binary:
            chunks.append(tensors.to_bytes(values))
            output.parameters = TensorParameters(len(chunks[-1]))
        else:
            output.data = tensors.to_json(values)
        outputs.append(output)
    named = {
        "domain": asked.domain,
        "bundle": by,
        "pack": ranking.pack,
        "experiment": experiment,
        "arm": arm,
    }
    parameters = {name: value for name, value in named.items() if value is not None}
    chunks[0] = _encode(
        InferenceResponse(bundle.manifest.name, version(bundle), outputs, parameters, asked.id)
    )
    return Answer(b"".join(chunks), len(chunks[0]) if len(chunks) > 1 else None)


def in_tensors(error: InvalidRequest) -> InvalidRequest:
    """An error of the encoder at places among tensors: `/items/price/3` is `item.price[3]`."""
    return InvalidRequest(Place(_of_tensor(place.pointer), place.detail) for place in error.places)


def _of_tensor(pointer: str) -> str:
    found = re.fullmatch(r"/(\w+)(?:/([a-z]\w*))?(?:/(\d+))?", pointer)
    if not found:
        return pointer
    owner, name, at = found.groups()
    key = owner if name is None else f"{owner.removesuffix('s')}.{name}"
    return key if at is None else f"{key}[{at}]"


def _json_length(given: str | None, whole: int) -> int:
    if given is None:
        return whole
    if not re.fullmatch(r"[0-9]{1,18}", given, re.ASCII):
        raise Malformed("Inference-Header-Content-Length is not a number of bytes")
    if int(given) > whole:
        raise Malformed(f"Inference-Header-Content-Length is {int(given)}, and the body has {whole} bytes")
    return int(given)


def _tensors(given: list[InferenceInput], body: bytes, at: int) -> dict[str, tuple[InferenceInput, Values]]:
    """The inputs by name; the bytes of those that are binary begin at `at`, one after another."""
    found: dict[str, tuple[InferenceInput, Values]] = {}
    for tensor in given:
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if tensor.name in found:
            raise InvalidRequest([Place(_short(tensor.name), "is given twice")])
        if (size is None) == (tensor.data is None):
            raise InvalidRequest(
                [Place(_short(tensor.name), "either `data` or `binary_data_size` must be given")]
            )
        try:
            if size is None:
                values = tensors.from_json(tensor.datatype, tensor.shape, tensor.data or [])
            else:
                if at + size > len(body):
                    raise Malformed(
                        f"{_short(tensor.name)}: {size} bytes are announced, and {len(body) - at} are left; "
                        "they follow the JSON, whose length Inference-Header-Content-Length says"
                    )
                values = tensors.from_bytes(tensor.datatype, tensor.shape, body, at, size)
                at += size
        except TensorError as error:
            raise InvalidRequest([Place(_short(tensor.name), str(error))]) from None
        found[tensor.name] = tensor, values
    if at != len(body):
        raise Malformed(f"{len(body) - at} bytes follow the last tensor's")
    return found


def _ids(tensor: InferenceInput, values: Values, bundle: Bundle) -> Values:
    _check_datatype(tensor, *_TAKES[bundle.items.dtype])
    if len(tensor.shape) != 1:
        raise _misshapen(tensor, "[n]")
    if not len(values):
        raise InvalidRequest([Place(IDS, "there are none")])
    if isinstance(values, list):
        return values
    if values.dtype == np.uint64 and values.max() > LARGEST:
        raise InvalidRequest([Place(IDS, "an id does not fit INT64")])
    return values.astype(np.int64, copy=False)


def _values(field: Field, tensor: InferenceInput, values: Values, n: int) -> Any:  # noqa: ANN401 - as JSON would have it
    """A field's value or, of an item's, its column of n."""
    takes = _TAKES[_type(field)]
    if field.size is not None:
        return _vectors(tensor, values, field.size, takes, None if field.scope == "request" else n)
    if field.multiple is None and field.scope == "request":
        return _value(tensor, values, *takes)
    _check_datatype(tensor, *takes)
    if field.multiple is None:
        if len(tensor.shape) != 1:
            raise _misshapen(tensor, "[n]")
        _check_length(tensor, n)
        return _plain(tensor, values)
    if field.scope == "request":
        if tensor.shape[:-1] not in ([], [1]):
            raise _misshapen(tensor, "[k] or [1, k]")
        return _without_padding(tensor, values, 1)[0]
    if len(tensor.shape) != 2:
        raise _misshapen(tensor, "[n, k]")
    _check_length(tensor, n)
    return _without_padding(tensor, values, n)


def _value(tensor: InferenceInput, values: Values, takes: frozenset[str], called: str) -> Any:  # noqa: ANN401
    _check_datatype(tensor, takes, called)
    if tensor.shape != [1]:
        raise _misshapen(tensor, "[1]")
    return _plain(tensor, values)[0]


def _vectors(
    tensor: InferenceInput, values: Values, size: int, takes: tuple[frozenset[str], str], n: int | None
) -> Any:  # noqa: ANN401 - as JSON would have it
    """An item field's (n, size), or the one vector of a request's field."""
    _check_datatype(tensor, *takes)
    if n is None:
        if tensor.shape not in ([size], [1, size]):
            raise _misshapen(tensor, f"[{size}] or [1, {size}]")
        return _plain(tensor, values)
    if tensor.shape[1:] != [size]:
        raise _misshapen(tensor, f"[n, {size}]")
    _check_length(tensor, n)
    return np.asarray(_plain(tensor, values) if tensor.datatype == "BOOL" else values).reshape(n, size)


def _plain(tensor: InferenceInput, values: Values) -> list[Any]:
    """As JSON would have it, but a boolean as a number."""
    if isinstance(values, list):
        return values
    plain: list[Any] = (values.astype(np.int8) if tensor.datatype == "BOOL" else values).tolist()
    return plain


def _without_padding(tensor: InferenceInput, values: Values, rows: int) -> list[list[Any]]:
    """Lists of unequal lengths: an empty text, or the least integer of a signed type, is no element."""
    width, plain = tensor.shape[-1], _plain(tensor, values)
    lists = [plain[row * width : (row + 1) * width] for row in range(rows)]
    pad: Any = ""
    if tensor.datatype != BYTES:
        dtype = NUMBERS[tensor.datatype]
        pad = int(np.iinfo(dtype).min) if dtype.kind == "i" else None
    if pad not in plain:
        return lists
    return [[value for value in row if value != pad] for row in lists]


def _outputs(given: InferenceRequest) -> tuple[tuple[str, bool], ...]:
    whole = given.parameters.binary_data_output
    if not given.outputs:
        return ((PROBABILITIES, whole), (IDS, whole)) if given.parameters.top_k else ((PROBABILITIES, whole),)
    wanted: dict[str, bool] = {}
    for output in given.outputs:
        if output.name not in {PROBABILITIES, IDS}:
            raise InvalidRequest([Place(_short(output.name), "no such output")])
        if output.name in wanted:
            raise InvalidRequest([Place(output.name, "is asked for twice")])
        own = output.parameters.binary_data if output.parameters else None
        wanted[output.name] = whole if own is None else own
    return tuple(wanted.items())


def _check_datatype(tensor: InferenceInput, takes: frozenset[str], called: str) -> None:
    if tensor.datatype not in takes:
        raise InvalidRequest([Place(tensor.name, f"expected {called}, got {tensor.datatype}")])


def _check_length(tensor: InferenceInput, n: int) -> None:
    if tensor.shape[0] != n:
        raise InvalidRequest([Place(tensor.name, f"{tensor.shape[0]} values for {n} candidates")])


def _misshapen(tensor: InferenceInput, wanted: str) -> InvalidRequest:
    return InvalidRequest([Place(tensor.name, f"expected the shape {wanted}, got {tensor.shape}")])


def _type(field: Field) -> str:
    return "number" if field.numeric else field.dtype


def _datatype(kind: str) -> str:
    return {"number": "FP32", "int": "INT64", "str": BYTES}[kind]


def _short(name: str) -> str:
    """What the caller named, no longer than a line."""
    return name if len(name) <= 200 else f"{name[:200]}..."
