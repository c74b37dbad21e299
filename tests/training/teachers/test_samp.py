"""What represents a domain, by hand, and what a language model makes of texts, against the library's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers as _untyped

from service.contract.field import PAD
from training import text
from training.teachers.samp import LearnedPrompts, MetaPrompts, Reader, Scenarios, nearest

transformers: Any = _untyped
SOME = ["a film of the genres Drama, War", "Toy Story", "a", "Drama and a toy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    text.tiny(path, SOME)
    return path


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader(text.language_model(str(folder), 0))


def rows(domain: str, count: int, user: int, positive: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "domain": [domain] * count,
            "user.id": [user + at % 4 for at in range(count)],
            "item.id": [at % 8 for at in range(count)],
            "label": [int(at < positive) for at in range(count)],
        }
    )


def test_static_features_and_similar_domains() -> None:
    """a and b are alike but for their names; c is smaller, and shares nobody with either."""
    train = pl.concat([rows("c", 4, 90, 0), rows("a", 64, 0, 32), rows("b", 64, 2, 33)])
    found = Scenarios.of(train, ["a", "b", "c"], G=2)
    name, count, items, users, positive = found.features.T.tolist()
    assert name == [0, 1, 2]
    assert count == [1, 1, 0]  # 2^6 and 2^2
    assert items == [1, 1, 0]  # 8 and 4
    assert users == [0, 0, 0]
    assert positive == [1, 1, 0]  # .50 and .52 are ten twentieths
    assert found.similar.tolist() == [[0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]]


def test_without_users_all_others_are_similar() -> None:
    train = pl.concat([rows("a", 9, 0, 1), rows("b", 9, 0, 2), rows("c", 9, 0, 3)]).drop("user.id")
    found = Scenarios.of(train, ["a", "b", "c"], G=1)
    assert found.features.shape == (3, 4)
    assert found.similar.tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_the_most_similar_not_the_least() -> None:
    similarity = np.array([[0, 0.2, 1, 0.5], [1, 0, 0, 0], [1, 0.1, 0, 0.9], [0, 0, 0, 0]])
    third = pytest.approx(1 / 3)
    assert nearest(similarity, 2).tolist() == [
        [0, 0, 0.5, 0.5],
        [1, 0, 0, 0],
        [0.5, 0, 0, 0.5],
        [third, third, third, 0],
    ]
    assert nearest(np.zeros((1, 1)), 2).tolist() == [[0]]


def test_a_domain_is_its_neighbours_and_itself(reader: Reader) -> None:
    scenarios = Scenarios(np.array([[0, 0], [1, 0]]), np.array([[0, 1], [1, 0]], np.float32))
    torch.manual_seed(0)
    prompts = MetaPrompts(scenarios, 5, reader.tokens)
    found = prompts.represented()
    assert found.shape == (2, 64)
    assert torch.equal(found[:, :32], found[:, 32:].flip(0))
    made = prompts().detach()
    assert made.shape == (2, 5, 64)
    assert float(made.std()) == pytest.approx(float(reader.tokens.std()), rel=1e-4)
    widths = [layer.out_features for layer in prompts.meta if isinstance(layer, torch.nn.Linear)]
    assert widths == [64, 16, 5 * 64]
    learned = LearnedPrompts(2, 5, reader.tokens)()
    assert torch.equal(learned[0], learned[1])


def test_an_encoder_gives_the_mean_of_the_text(folder: Path, reader: Reader) -> None:
    tokens = torch.from_numpy(text.tokenise(folder, SOME, 16))
    found = reader(tokens, None)
    assert not reader.causal
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for row, vector in zip(tokens.long(), found, strict=True):
        alone = row[row != PAD][None]
        torch.testing.assert_close(model(input_ids=alone).last_hidden_state[0].mean(0), vector)
    prompts = torch.randn(4, 3, 64) * 0.1
    with_prompts = reader(tokens, prompts)
    assert (with_prompts - found).abs().max() > 0.01
    # As the text alone with its prompts: padding has no part in it.
    short = tokens[2:3, : int((tokens[2] != PAD).sum())]
    torch.testing.assert_close(reader(short, prompts[2:3]), with_prompts[2:3])


def test_a_decoder_gives_the_last_token() -> None:
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    reader = Reader(model)
    assert reader.causal
    tokens = torch.tensor([[3, 4, 5, PAD], [6, 7, PAD, PAD]])
    found = reader(tokens, None)
    torch.testing.assert_close(model(input_ids=tokens[:1, :3]).last_hidden_state[0, -1], found[0])
    torch.testing.assert_close(model(input_ids=tokens[1:, :2]).last_hidden_state[0, -1], found[1])
    assert not torch.allclose(reader(tokens, torch.ones(2, 2, 16)), found)


def test_it_is_frozen_and_never_trains(reader: Reader) -> None:
    assert not any(parameter.requires_grad for parameter in reader.parameters())
    reader.train()
    assert not any(module.training for module in reader.modules())
