"""`Recipe`: a whole run, as typed data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.errors import RunError

M = TypeVar("M", bound=BaseModel)
Positive = Annotated[int, Field(ge=1)]


class Choice(BaseModel):
    """An option by its file's name; what else stands beside the name goes to that file's `Options`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """What stands beside the name."""
        return dict(self.model_extra or {})


class Optimisation(BaseModel):
    """How a stage is trained: Adam with L2, early stopping on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=0)] = 100
    """At most so many."""
    batch: Positive = 512
    lr: Annotated[float, Field(gt=0)] = 2e-3
    l2: Annotated[float, Field(ge=0)] = 1e-5
    """Towards zero in a stage over all domains, towards the stage's start in one over each domain."""
    decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled from the gradient (AdamW): each step shrinks a parameter by so much times the rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """Of the learning rate; linear goes down to zero over `epochs`."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Over this share of all steps, the first ones, the learning rate rises from zero."""
    accumulate: Positive = 1
    """A step's batch is computed in so many parts, one after the other, to fit into memory."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """The norm that a step's gradient is cut to."""
    patience: Positive = 5
    """Stop after so many epochs without a better AUC (macro, or the domain's)."""


class Tuning(Optimisation):
    """The same for stages over each domain."""

    lr_of: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Learning rates of single domains, where one does not suit all."""


class Distil(BaseModel):
    """What a student learns from a teacher (`training.distil`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: dict[str, Any]
    """The teacher's recipe; its data is a source over the same rows as the student's."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the teachers and the folds, whatever the student's: students of all seeds share them."""
    folds: Annotated[int, Field(ge=2)] = 2
    """A row's target comes from a teacher trained without that row's part of so many."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """a: of the loss against the teacher's logit; the click itself has 1 - a."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T, which divides both logits."""
    representation: Annotated[float, Field(ge=0)] = 0.1
    """b: of the distance between the student's hidden units and the teacher's representation."""
    size: Positive = 16
    """r: to how many numbers a representation is projected."""


class Graded(BaseModel):
    """What a model learns from the number that its label was cut from (`training.grades`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the loss of all other cuts; the label's own has the rest."""


class Align(Optimisation):
    """How a model's rows are aligned with what a language model makes of their texts (`training.align`)."""

    model: str = "tiny"
    """A folder in Hugging Face's format, `package:NAME`, or `tiny`; it is frozen."""
    length: Positive = 64
    """Tokens of a text, at most."""
    prompts: Literal["scenario", "learned", "none"] = "scenario"
    """In front of a text: what the meta network makes of the domain, the same for all domains, or nothing."""
    n_prompts: Positive = 8
    G: Positive = 2
    """So many similar domains have a part in what represents a domain."""
    loss: Literal["sec", "supcon", "ctrl"] = "sec"
    """What a row is drawn to: its own text and the closest of other domains, at least one of them or each;
    or its own alone."""
    k: Positive = 5
    """So many closest texts of other domains."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    live: Positive = 16
    """Of so many rows of a batch the texts are read anew, so that prompts learn; the others' were read when
    the epoch began."""
    epochs: Annotated[int, Field(ge=0)] = 3
    lr: Annotated[float, Field(gt=0)] = 1e-3
    l2: Annotated[float, Field(ge=0)] = 0.0


class Recipe(BaseModel):
    """Data, model, optimisation and seed of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive = 1
    """Of the CPU. One, so that a run repeats bit by bit on a machine with more cores."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where the model is while it is trained and evaluated; auto is a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products of matrices and what follows from them; parameters and losses stay float32."""
    data: Choice
    dim: Positive = 16
    """K."""
    backbone: Choice = Choice(name="deepfm")
    paradigm: Choice
    general_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Weight of the loss of all rows under the general domain, beside that of their own."""
    joint: Optimisation = Optimisation()
    tuning: Tuning = Tuning()
    align: Annotated[Align | None, Field(exclude_if=lambda align: align is None)] = None
    """What comes before the paradigm's own stages; where nothing does, it is not part of a run's identity."""
    distil: Distil | None = None
    grades: Annotated[Graded | None, Field(exclude_if=lambda grades: grades is None)] = None
    """A second target, where the data has one."""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a YAML file, then change single values.

        Args:
            path: the recipe.
            overrides: `["--tuning.lr", "1e-3", ...]`, or `--tuning.lr=1e-3`; values are YAML.

        Raises:
            RunError: the file cannot be read, or a value is unknown or wrong; the text names the place.
        """
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RunError(f"cannot read recipe {path}: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise RunError(f"recipe {path} is not a mapping")
        return cls.resolve(data, overrides)

    @classmethod
    def resolve(cls, data: Mapping[str, Any], overrides: Sequence[str] = (), what: str = "recipe") -> Recipe:
        """A recipe out of what a file holds, with single values changed as in `load`.

        Raises:
            RunError: a value is unknown or wrong; the text names the place.
        """
        changed = copy.deepcopy(dict(data))
        for name, value in _pairs(overrides):
            try:
                _put(changed, name.split("."), yaml.safe_load(value))
            except yaml.YAMLError as error:
                raise RunError(
                    f"--{name}: {value!r} is not a value: {' '.join(str(error).split())}"
                ) from error
        return parse(cls, changed, what)


def parse(model: type[M], data: object, what: str) -> M:
    """Validate, with one line that names every wrong place.

    Raises:
        RunError: the data does not fit.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        places = (f"{'.'.join(map(str, e['loc'])) or what}: {e['msg']}" for e in error.errors())
        raise RunError(f"{what}: {'; '.join(places)}") from error


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not equals and not rest):
            raise RunError(f"expected --some.name VALUE, got {name!r}")
        pairs.append((name[2:].replace("-", "_"), value if equals else rest.pop(0)))
    return pairs


def _put(data: dict[str, Any], path: list[str], value: object) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise RunError(f"--{'.'.join(path)}: {part} has no values of its own")
    data[path[-1]] = value
