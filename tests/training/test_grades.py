from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from rich.progress import Progress
from torch.nn.functional import binary_cross_entropy_with_logits

from service.contract.errors import RunError
from training.checkpoint import Run
from training.data.batches import UNKNOWN, Rows
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.grades import Grades
from training.recipe import Recipe

# Two domains; a label is 1 above grade 2. Of the third row's grade nothing is known.
GRADE = torch.tensor([1, 3, UNKNOWN, 2, 4, 4, 1, 3])
LABEL = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
DOMAIN = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def rows(grade: torch.Tensor | None = GRADE) -> Rows:
    ids = torch.zeros(len(LABEL), 1, dtype=torch.int32)
    numbers = torch.zeros(len(LABEL), 0)
    return Rows(ids, numbers, ids, numbers, DOMAIN, LABEL, grade=grade)


def odds(above: int, of: int) -> float:
    return math.log((above + 1) / (of - above + 1))


def test_offsets_are_how_much_more_often_a_domain_is_above_another_cut() -> None:
    # By hand. Cuts are above 1, 2 and 3, of which 2 is the label's. Domain 0 has three rows of known grade:
    # one above 2, two above 1, none above 3. Domain 1 has four: three above 2, three above 1, two above 3.
    found = Grades.of(rows(), 2, 0.5)
    assert found.cuts.tolist() == [1, 3]
    expected = [
        [odds(2, 3) - odds(1, 3), odds(0, 3) - odds(1, 3)],
        [odds(3, 4) - odds(3, 4), odds(2, 4) - odds(3, 4)],
        [odds(5, 7) - odds(4, 7), odds(2, 7) - odds(4, 7)],
    ]
    torch.testing.assert_close(found.offset, torch.tensor(expected))


def test_the_loss_is_the_labels_and_the_mean_of_the_other_cuts() -> None:
    grades = Grades(0.25, torch.tensor([1, 3]), torch.tensor([[0.5, -0.5], [1.0, -1.0], [0.0, 0.0]]))
    logit = torch.linspace(-1, 1, len(LABEL))
    found = grades.loss(logit, rows())
    alone = binary_cross_entropy_with_logits(logit, LABEL, reduction="none")
    assert found[2] == alone[2]  # its grade is not known
    # By hand, of the fifth row: its grade of 4 is above both cuts, whose logits are z + 1 and z - 1.
    z = float(logit[4])
    cuts = [math.log1p(math.exp(-(z + c))) for c in (1.0, -1.0)]
    assert float(found[4]) == pytest.approx(0.75 * float(alone[4]) + 0.25 * sum(cuts) / 2)
    torch.testing.assert_close(grades.loss(logit, rows(None)), alone)


def test_a_weight_of_zero_is_the_loss_of_labels_alone() -> None:
    logit = torch.linspace(-1, 1, len(LABEL))
    found = Grades.of(rows(), 2, 0.0).loss(logit, rows())
    torch.testing.assert_close(found, binary_cross_entropy_with_logits(logit, LABEL, reduction="none"))


@pytest.mark.parametrize(
    ("grade", "says"),
    [
        (None, "the data has none"),
        (torch.tensor([3, 1, UNKNOWN, 2, 4, 4, 1, 3]), "do not follow"),
        (torch.full((8,), UNKNOWN), "do not follow"),
    ],
)
def test_grades_that_the_label_does_not_follow_from_are_refused(
    grade: torch.Tensor | None, says: str
) -> None:
    with pytest.raises(RunError, match=says):
        Grades.of(rows(grade), 2, 0.5)


def graded(folder: Path) -> Prepared:
    """The simulator's rows, with a grade of 2 to 4 for a click and of 0 or 1 for none."""
    source = {"domains": {"a": 2000, "b": 1000}, "users": 60, "items": 40}
    prepared = prepare("synthetic", source, folder)
    for split in ("train", "valid", "test"):
        frame = prepared.split(split)
        low, high = (pl.col("probability") * 2).cast(pl.Int64), 2 + (pl.col("probability") * 3).cast(pl.Int64)
        grade = pl.when(pl.col("label") == 1).then(high).otherwise(low)
        frame.with_columns(grade=pl.when(pl.int_range(pl.len()) % 5 > 0).then(grade)).write_parquet(
            prepared.path / f"{split}.parquet"
        )
    return prepared


def test_a_run_learns_from_grades_and_resumes_and_serves_as_without(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "graded",
            "data": {"name": "synthetic"},
            "dim": 4,
            "backbone": {"name": "deepfm", "hidden": [8]},
            "paradigm": {"name": "plate", "prompt_hidden": [8]},
            "joint": {"epochs": 1, "lr": 1e-2},
            "tuning": {"epochs": 1, "lr": 1e-2},
        }
    )
    assert "grades" not in recipe.model_dump(mode="json")  # an older run's recipe stays what it is
    prepared = graded(tmp_path)
    with Progress(disable=True) as bars:

        def run(name: str, **changed: object) -> dict[str, object]:
            one = recipe.model_validate({**recipe.model_dump(), **changed})
            Fit(one, prepared, Run(tmp_path / name, one, prepared), bars)()
            return {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.safetensors"))}

        plain, taught = run("plain"), run("taught", grades={"weight": 0.5})
        assert plain.keys() == taught.keys()
        assert plain != taught
        assert run("again", grades={"weight": 0.5}) == taught


def test_rows_keep_their_grades() -> None:
    both = rows()[2:4].joined(rows()[4:6])
    assert both.grade is not None
    assert both.grade.tolist() == [UNKNOWN, 2, 4, 4]
    assert rows()[2:4].joined(rows(None)[4:6]).grade is None
