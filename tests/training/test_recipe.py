from __future__ import annotations

from pathlib import Path

import pytest

from service.contract.errors import RunError
from training.recipe import Recipe

TEXT = """
name: r
data: {name: synthetic, users: 10}
backbone: {name: deepfm}
paradigm: {name: mix}
joint: {lr: 1e-3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(TEXT)
    return tmp_path / "r.yaml"


def test_values_from_the_file_and_the_command_line(path: Path) -> None:
    recipe = Recipe.load(
        path, ["--joint.lr", "3e-4", "--data.users=20", "--backbone.hidden", "[32, 8]", "--seed", "7"]
    )
    assert recipe.joint.lr == 3e-4
    assert recipe.data.options == {"users": 20}
    assert recipe.backbone.options == {"hidden": [32, 8]}
    assert recipe.seed == 7
    assert recipe.tuning.lr == 2e-3  # the default


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--joint.lrate", "1"], "joint.lrate"),
        (["--joint.lr", "-1"], "joint.lr"),
        (["--joint.lr", "["], "is not a value"),
        (["--joint.lr"], "expected --some.name VALUE"),
        (["joint.lr", "1"], "expected --some.name VALUE"),
        (["--name.x", "1"], "name has no values of its own"),
        (["--paradigm", "mix"], "paradigm"),
    ],
)
def test_what_is_wrong_is_named(path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(RunError, match=says):
        Recipe.load(path, overrides)


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RunError, match=r"bad\.yaml"):
        Recipe.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted(Path("training/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_say_how_to_run_them(path: Path) -> None:
    assert Recipe.load(path).name == path.stem.replace("_", "-")
    assert path.read_text().startswith(f"# python -m training fit training/recipes/{path.name} ")
