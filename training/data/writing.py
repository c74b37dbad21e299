"""What `prepare` writes: a source's rows, cleaned and split, all at once or in parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import polars as pl
from pydantic import JsonValue

from service.contract import files
from service.contract.errors import RunError
from service.contract.schema import FeatureSchema
from training.data.prepare import BY_TIME, SPLITS, About, Fitted, Part, Unseen, as_column, domain_name
from training.data.sources._protocol import InParts, Source

_KNOWN = ("split", "time", "probability", "user.id", "position", "propensity", "grade")
"""Columns that not every source has, and that are kept."""
IDS = ("user.id", "item.id")
"""Columns of which it is counted what training has not seen."""


@dataclass(frozen=True)
class Origin:
    """Where rows come from."""

    source: str
    options: dict[str, JsonValue]
    checksum: str | None


@dataclass
class Cleaned:
    """Usable rows, and what was found on the way to them."""

    source: Source
    place: str
    items: pl.DataFrame
    names: dict[str, str] = field(default_factory=dict)
    """Of domains, by what the source calls them."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    rows: int = 0
    """That the source gave."""

    @classmethod
    def of(cls, source: Source, name: str) -> Cleaned:
        """Nothing yet but the items.

        Raises:
            RunError: the items are not as promised.
        """
        return cls(source, f"source {name}: interactions", _items(source, name))

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The usable ones of the rows that come next, with the promised columns, `split` and no other."""
        own = [each.key for each in self.source.fields if each.owner != "item"]
        _require(frame, ["domain", "label", "item.id", *own], self.place)
        if "split" not in frame and "time" not in frame:
            raise RunError(f"{self.place} have neither `split` nor `time` to split by")
        known = [key for key in _KNOWN if key in frame]
        kept = dict.fromkeys(["domain", "label", *known, *own, "item.id"])
        usable = {
            "no label": pl.col("label").is_not_null(),
            "no domain": pl.col("domain").is_not_null(),
            "item not among the items": pl.col("item.id").is_in(self.items["item.id"].to_list()),
        }
        if "split" in frame:
            usable["unknown split"] = pl.col("split").is_in(SPLITS)
        else:
            usable["no time"] = pl.col("time").is_not_null()
        number = (pl.int_range(pl.len(), dtype=pl.Int64) + self.rows).alias("row")
        self.rows += frame.height
        frame = frame.select(number, *kept)
        for reason, condition in usable.items():
            before = frame.height
            frame = frame.filter(condition)
            if frame.height < before:
                self.dropped[reason] += before - frame.height
        if frame.is_empty():
            return frame
        if not frame["label"].is_in([0, 1]).all():
            raise RunError(f"{self.place} have labels other than 0 and 1")
        frame = self._renamed(frame)
        if "split" not in frame:
            frame = _split_by_time(frame)
        described = self.items.drop("text", strict=False)
        return frame.join(described, on="item.id", how="left", maintain_order="left")

    def _renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with every domain's name as `domain_name` makes it."""
        self.names |= {raw: domain_name(raw) for raw in sorted(frame["domain"].unique())}
        if len(set(self.names.values())) < len(self.names):
            listed = ", ".join(sorted(self.names))
            raise RunError(f"{self.place} have domains whose names become the same: {listed}")
        return frame.with_columns(pl.col("domain").replace_strict(self.names, return_dtype=pl.String))


def write(path: Path, source: Source, origin: Origin, fitted: Fitted | None) -> None:
    """Fill the folder `path` with what a source gives.

    Raises:
        RunError: it is not what a source promises, or does not go with what is fitted.
        SchemaError: a value does not fit its field.
    """
    if fitted is not None:
        _same_fields(source, origin.source, fitted.schema)
    cleaned = Cleaned.of(source, origin.source)
    with files.new_folder(path) as folder:
        if isinstance(source, InParts):
            from training.data.parts import write_parts  # noqa: PLC0415 - it is made of what is here

            write_parts(folder, cleaned, source, origin, fitted)
        else:
            _write_whole(folder, cleaned, origin, fitted)


def _write_whole(folder: Path, cleaned: Cleaned, origin: Origin, fitted: Fitted | None) -> None:
    source, name = cleaned.source, origin.source
    given = source.interactions()
    frame = cleaned(given.frame)
    if frame.is_empty():
        raise RunError(f"{cleaned.place} have no usable rows")
    parts = {split: frame.filter(pl.col("split") == split).drop("split") for split in SPLITS}
    for split, rows in parts.items():
        if rows.is_empty():
            raise RunError(f"source {name}: no rows for {split}")
    domains = domains_of(frame["domain"].unique(), name, fitted)
    train, test = parts["train"], parts["test"]
    schema = (
        FeatureSchema.fit(source.fields, {each.key: as_column(train[each.key]) for each in source.fields})
        if fitted is None
        else fitted.schema
    )
    about = About(
        source=name,
        options=origin.options,
        checksum=origin.checksum,
        protocol=given.protocol,
        domains=domains,
        parts={domain: {split: part_of(rows, domain) for split, rows in parts.items()} for domain in domains},
        dropped={**given.dropped, **cleaned.dropped},
        oracle_auc=oracle(test, domains),
        unseen={key: unseen(train[key], test[key]) for key in IDS if key in train},
    )
    for split, rows in parts.items():
        rows.write_parquet(folder / f"{split}.parquet")
    write_rest(folder, cleaned.items, schema, about)


def write_rest(folder: Path, items: pl.DataFrame, schema: FeatureSchema, about: About) -> None:
    """What a folder has beside the rows."""
    items.write_parquet(folder / "items.parquet")
    schema.save(folder / "schema.json")
    files.write(folder / "data.json", about.model_dump_json(indent=2))


def _items(source: Source, name: str) -> pl.DataFrame:
    """What a source promises of its items, each of them once."""
    items = source.items()
    promised = dict.fromkeys(["item.id", *(field.key for field in source.fields if field.owner == "item")])
    _require(items, promised, f"source {name}: items")
    if items["item.id"].null_count() or items["item.id"].is_duplicated().any():
        raise RunError(f"source {name}: an item id is missing, or repeats")
    return items.select(*promised, *(["text"] if "text" in items else []))


def _require(frame: pl.DataFrame, promised: Iterable[str], place: str) -> None:
    missing = [column for column in promised if column not in frame]
    if missing:
        raise RunError(f"{place} lack {', '.join(missing)}")


def _split_by_time(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of one moment stay together, so nothing in training is as late as anything in validation."""
    times = frame["time"].sort()
    valid, test = (times[int(part * len(times))] for part in BY_TIME)
    late = pl.when(pl.col("time") < test).then(pl.lit("valid")).otherwise(pl.lit("test"))
    return frame.with_columns(split=pl.when(pl.col("time") < valid).then(pl.lit("train")).otherwise(late))


def _same_fields(source: Source, name: str, schema: FeatureSchema) -> None:
    """A schema encodes a source's rows if it was fitted on fields that were declared alike."""
    declared = {each.key: each for each in source.fields}
    known = {each.key: each for each in schema.fields}
    odd = sorted(declared.keys() ^ known.keys())
    for key in declared.keys() & known.keys():
        # What fitting decides is taken from the one that is fitted, unless it came with the source.
        fit = {name: getattr(known[key], name) for name in ("values", "mean", "std")}
        if given := declared[key].values:
            fit["values"] = given
        if declared[key].model_copy(update=fit) != known[key]:
            odd.append(key)
    if odd:
        listed = ", ".join(sorted(odd))
        raise RunError(f"source {name}: fields are not those of the schema to keep: {listed}")


def domains_of(found: Iterable[str], name: str, fitted: Fitted | None) -> tuple[str, ...]:
    """The domains by name, or those of the model that the rows are for.

    Raises:
        RunError: it does not know a domain.
    """
    if fitted is None:
        return tuple(sorted(found))
    if new := sorted(set(found) - set(fitted.domains)):
        raise RunError(
            f"source {name}: the model has no domain {', '.join(new)}; `python -m export add-domain` adds one"
        )
    return fitted.domains


def part_of(rows: pl.DataFrame, domain: str) -> Part:
    """What a split has of a domain."""
    labels = rows.filter(pl.col("domain") == domain)["label"]
    return Part(rows=len(labels), positive=cast("float | None", labels.mean()))


def unseen(train: pl.Series, test: pl.Series) -> Unseen:
    """What of the test rows' ids is not among the training rows'."""
    known = train.unique().to_list()
    ids = cast("float", (~test.unique().is_in(known)).mean())
    return Unseen(ids=ids, rows=cast("float", (~test.is_in(known)).mean()))


def oracle(test: pl.DataFrame, domains: Sequence[str]) -> dict[str, float]:
    """AUC of `probability` by domain: the rank sum of the clicks (Mann-Whitney), ties at their mean rank."""
    if "probability" not in test:
        return {}
    ranked = test.with_columns(rank=pl.col("probability").rank("average").over("domain"))
    found = {}
    for domain in domains:
        rows = ranked.filter(pl.col("domain") == domain)
        clicks = rows.filter(pl.col("label") == 1)["rank"]
        pairs = len(clicks) * (rows.height - len(clicks))
        if pairs:
            found[domain] = (float(clicks.sum()) - len(clicks) * (len(clicks) + 1) / 2) / pairs
    return found
