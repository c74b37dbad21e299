"""What a language model reads: folders of models, prompts, tokens, and vectors of texts.

A model is a local folder in Hugging Face's format (config.json, weights, tokenizer.json); nothing is fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import transformers as _untyped
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.contract import hashing
from service.contract.errors import RunError
from service.contract.field import PAD, Field

Parts = Literal["id", "name", "full"]

transformers: Any = _untyped
"""Half of its functions have no types."""

_CHUNK = 10_000
"""Texts that are tokenised at once."""
_BATCH = 64
_LONGEST = 256
"""Tokens of a text that a vector is made of."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = 2_000
"""Whole words in a tiny model's vocabulary, at most; other words are spelled."""


def folder(name: str) -> Path:
    """The folder of a model.

    Args:
        name: a path, or `package:NAME` for the folder `model` inside the installed package NAME.

    Raises:
        RunError: there is no such package, or no model in the folder.
    """
    path = Path(name).expanduser()
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise RunError(f"model {name}: no package {package!r} is installed")
        path = Path(found.submodule_search_locations[0]) / "model"
    if not (path / "config.json").is_file():
        raise RunError(f"model {name}: {path / 'config.json'} is not there")
    return path


def checksum(path: Path) -> str:
    """The SHA-256 of the checksums, one a line, of a model's config, weights and tokenizer.

    Raises:
        RunError: the folder has no weights.
    """
    weights = sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")])
    if not weights:
        raise RunError(f"model {path}: no weights, neither *.safetensors nor pytorch_model*.bin")
    parts = [path / "config.json", *weights, path / "tokenizer.json"]
    found = [hashing.file(part) for part in parts if part.is_file()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def checksum_of_tokenizer(path: Path) -> str:
    """The SHA-256 of what decides a text's tokens.

    Raises:
        RunError: the folder has no tokenizer.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise RunError(f"{file} is not there")
    return hashing.file(file)


def askers(
    frame: pl.DataFrame, items: pl.DataFrame, fields: Sequence[Field], parts: Parts, history: int
) -> list[str]:
    """The first sentence of a prompt, after Uni-CTR eq. 5: where, and who asks.

        shop: The user ID is user_7, gender F, age 25-34, who clicked product 'A' & product 'B' recently.

    What a frame or its items do not have is left out.

    Args:
        frame: n rows with `domain` and the user's columns under their `Field.key`.
        items: every item with `item.id`, and `name` where there are words.
        fields: which columns there are; those of the user that have one value are the profile.
        parts: `full` has the profile, and the last names of `user.history`.
        history: at most so many names.

    Returns:
        n strings.
    """
    user = [pl.format("The user ID is user_{}", "user.id")] if "user.id" in frame.columns else []
    who = [pl.coalesce(*user, pl.lit("The user"))]
    table = frame
    if parts == "full":
        who += [
            pl.format(f"{field.name.replace('_', ' ')} {{}}", _written(field))
            for field in fields
            if field.owner == "user" and field.name != "id" and _single(field)
        ]
        if "user.history" in frame.columns and "name" in items.columns:
            table = table.with_columns(clicked=_clicked(frame["user.history"], items, history))
            who.append(pl.format("who clicked {} recently", "clicked"))
    sentence = pl.concat_str(who, separator=", ", ignore_nulls=True)
    whole = pl.format("{}: {}.", pl.col("domain").fill_null("unknown"), sentence)
    return table.select(whole.alias("asker"))["asker"].to_list()


def products(items: pl.DataFrame, parts: Parts) -> list[str]:
    """The second sentence of a prompt: what is offered.

        The ID of the current product is product_9, a film of ...

    Args:
        items: n items with `item.id`, and `name` and `text` where there are words.
        parts: the id alone; with the name; or with the text in the name's place.

    Returns:
        n strings, each with a blank in front of it, as it follows the first sentence.
    """
    words = {"id": [], "name": ["name"], "full": ["text", "name"]}[parts]
    known = [pl.col(word).str.strip_chars_end(". ") for word in words if word in items.columns]
    what = [pl.format("The ID of the current product is product_{}", "item.id")]
    if known:
        what.append(pl.coalesce(known))
    sentence = pl.concat_str(what, separator=", ", ignore_nulls=True)
    return items.select(pl.format(" {}.", sentence).alias("product"))["product"].to_list()


def tokenise(
    path: Path, texts: Sequence[str], length: int, *, begins: bool = True, ends: bool = True
) -> npt.NDArray[np.int32]:
    """Token ids (n, length), -1 beyond a text's end; a longer text is cut before its last special token.

    Args:
        path: the model's folder.
        texts: n.
        length: tokens, special ones included.
        begins: whether special tokens of a text's beginning come first.
        ends: whether those of its end come last.

    Raises:
        RunError: the folder has no tokenizer.
    """
    tokenizer = _tokenizer(path)
    before, after = _special(tokenizer)
    before, after = before if begins else [], after if ends else []
    room = length - len(before) - len(after)
    tokens = np.full((len(texts), length), PAD, np.int32)
    for start in range(0, len(texts), _CHUNK):
        found = tokenizer(
            list(texts[start : start + _CHUNK]),
            add_special_tokens=False,
            truncation=True,
            max_length=room,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        rows = [before + row + after for row in found]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens[start : start + len(rows)][np.arange(length) < lengths[:, None]] = np.concatenate(rows)
    return tokens


def vocabulary(path: Path) -> int:
    """How many token ids a model's tokenizer has.

    Raises:
        RunError: the folder has no tokenizer.
    """
    return len(_tokenizer(path))


@dataclass(frozen=True)
class Axes:
    """What brings a model's vectors of texts to few numbers: the first principal axes of some texts."""

    mean: npt.NDArray[np.float64]
    """(width,)"""
    axes: npt.NDArray[np.float64]
    """(size, width), each of unit length, and pointing where its largest entry does."""
    length: float
    """Of the texts on these axes, as the root of the mean square."""

    @classmethod
    def of(cls, read: npt.NDArray[np.float64], size: int) -> Axes:
        """Those of n texts, as `means` reads them.

        Raises:
            RunError: `size` is more than their width, or than n.
        """
        if size > min(read.shape):
            raise RunError(f"{read.shape[0]} texts of width {read.shape[1]} have no {size} principal axes")
        mean = read.mean(axis=0)
        axes = np.linalg.svd(read - mean, full_matrices=False)[2][:size]
        axes *= np.sign(axes[np.arange(size), np.abs(axes).argmax(axis=1)])[:, None]
        return cls(mean, axes, np.sqrt((((read - mean) @ axes.T) ** 2).sum(axis=1).mean()))

    def of_texts(self, read: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Vectors of n texts on these axes, (n, size).

        All columns have one scale, at which the texts that the axes are of have a mean square length of 1.
        """
        scores = (read - self.mean) @ self.axes.T
        scaled: npt.NDArray[np.float32] = (scores / (self.length or 1.0)).astype(np.float32)
        return scaled


def means(path: Path, texts: Sequence[str], device: str = "cpu") -> npt.NDArray[np.float64]:
    """What a model makes of each text: the masked mean of the last hidden states, at unit length.

    Returns:
        (n, width).

    Raises:
        RunError: the folder has no model.
    """
    with _quiet(path):
        model = transformers.AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    width = model.config.hidden_size
    tokens = tokenise(path, texts, min(_LONGEST, model.config.max_position_embeddings))
    ends = (tokens != PAD).sum(axis=1)
    found, order = np.empty((len(texts), width)), np.argsort(ends, kind="stable")
    model.eval().to(device)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            at = order[start : start + _BATCH]
            ids = torch.from_numpy(tokens[at, : ends[at].max()]).long().to(device)
            mask = ids != PAD
            hidden = model(input_ids=ids.clamp(min=0), attention_mask=mask.long()).last_hidden_state
            mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            found[at] = torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()
    return found


def vectors(path: Path, texts: Sequence[str], size: int) -> npt.NDArray[np.float32]:
    """What a model makes of each text, on the first `size` principal axes of these texts, (n, size).

    Raises:
        RunError: the folder has no model, or there are fewer axes.
    """
    read = means(path, texts)
    return Axes.of(read, size).of_texts(read)


def tiny(path: Path, texts: Sequence[str], seed: int = 0) -> None:
    """Write a small BERT with random weights into a folder, and a tokenizer of the words in `texts`.

    The vocabulary is the texts' most frequent words, ties in the order of the alphabet, and every character:
    the library's own trainer makes another one each time.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        plain = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain))
    letters = sorted({letter for word in counts for letter in word})
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:_WORDS]
    pieces = dict.fromkeys([*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *frequent])
    at = {piece: place for place, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(at, unk_token="[UNK]")  # noqa: S106 - no password
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", at["[SEP]"]), ("[CLS]", at["[CLS]"]))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, **dict(zip(names, _SPECIAL, strict=True))
    )
    config = tiny_config(len(at), at["[PAD]"])
    with _quiet(path), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModel.from_config(config).save_pretrained(path)
        whole.save_pretrained(path)


def tiny_config(words: int, padding: int = 0) -> transformers.BertConfig:
    """The shape of a tiny model that knows so many token ids."""
    return transformers.BertConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        pad_token_id=padding,
    )


def language_model(
    name: str, words: int, *, pretrained: bool = True, layers: int | None = None
) -> transformers.PreTrainedModel:
    """A model without what comes after its last layer.

    Args:
        name: a folder, or `tiny`, which has random weights.
        words: how many token ids its tokenizer has.
        pretrained: whether to read the folder's weights, or start at random.
        layers: only the first so many.

    Raises:
        RunError: there is no such model, or it has fewer layers.
    """
    if name == "tiny":
        config: transformers.PretrainedConfig = tiny_config(words)
    else:
        with _quiet(path := folder(name)):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise RunError(f"model {name} has {config.num_hidden_layers} layers, not {layers}")
        config.num_hidden_layers = layers
    if name != "tiny" and pretrained:
        with _quiet(path):
            read = transformers.AutoModel.from_pretrained(
                path, config=config, local_files_only=True, dtype=torch.float32
            )
    if name == "tiny" or not pretrained:
        read = transformers.AutoModel.from_config(config)
    model: transformers.PreTrainedModel = read
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    return model


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401 - as above
    """The token ids that a tokenizer puts in front of a text, and behind it."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    at = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]


def _single(field: Field) -> bool:
    return field.kind != "vector" and field.multiple is None


def _written(field: Field) -> pl.Expr:
    """A field's value in words: a number without needless digits."""
    value = pl.col(field.key)
    if field.kind != "number":
        return value.cast(pl.String)
    return value.cast(pl.Float64).round(2).cast(pl.String).str.strip_suffix(".0")


def _clicked(history: pl.Series, items: pl.DataFrame, most: int) -> pl.Series:
    """The last names of each history, n strings; null for one without a name."""
    rows = pl.DataFrame({"item.id": history.list.tail(most)}).with_row_index("at")
    named = (
        rows.explode("item.id")
        .join(items.select("item.id", "name"), on="item.id", maintain_order="left")
        .drop_nulls("name")
        .group_by("at")
        .agg(pl.format("product '{}'", "name").str.join(" & ").alias("clicked"))
    )
    return rows.join(named, on="at", how="left", maintain_order="left")["clicked"]


def _tokenizer(path: Path) -> Any:  # noqa: ANN401 - the library's own classes have no common type
    with _quiet(path):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """No progress bars or advice from the library, and its errors as one line."""
    logging = transformers.utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError) as error:
        raise RunError(f"model {path}: {' '.join(str(error).split())}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
