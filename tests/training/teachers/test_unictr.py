"""Uni-CTR's promises, on a tiny language model with random weights."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from service.contract.errors import RunError
from service.contract.field import PAD, Field
from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.model import joint_logits
from training.nn.ladders import DomainNetwork, Gate, Ladder
from training.teachers.unictr import Options, UniCTR

WORDS, J, D = 40, 12, 3
VOCABULARY = tuple(range(WORDS))
SCHEMA = FeatureSchema(
    fields=tuple(
        Field(name="tokens", owner=owner, kind="vocabulary", dtype="int", multiple=J, values=VOCABULARY)
        for owner in ("context", "item")
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    path: Path = tmp_path_factory.mktemp("model")
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def teacher(folder) -> UniCTR:
    torch.manual_seed(1)
    built = UniCTR(Options(model=str(folder), rank=2, tower=(16, 8)), SCHEMA, D).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if ".lora_B." in name:  # zero at the start, so that a fault in merging would not show
                parameter.normal_(0, 0.05)
    return built


def rows(n: int, seed: int = 0) -> Rows:
    """Prompts of two parts of 3 to `J` tokens."""
    random = np.random.default_rng(seed)

    def part(offset: int) -> torch.Tensor:
        ids = random.integers(0, WORDS, (n, J)).astype(np.int32) + offset + 1
        ids[np.arange(J) >= random.integers(3, J + 1, n)[:, None]] = PAD
        return torch.from_numpy(ids)

    empty = torch.zeros(n, 0)
    domain = torch.from_numpy(random.integers(0, D, n))
    label = torch.from_numpy(random.integers(0, 2, n).astype(np.float32))
    return Rows(part(0), empty, part(WORDS + 1), empty, domain, label)


def test_a_ladder_attends_over_tokens_and_never_over_the_batch():
    torch.manual_seed(0)
    ladder = Ladder(16, 4, 2, 0.0).eval()
    hidden, present = torch.randn(4, 6, 16), torch.ones(4, 6, dtype=torch.bool)
    before = ladder(hidden, present)
    changed = hidden.clone()
    changed[0, 5] += 1
    after = ladder(changed, present)
    assert (after[1:] - before[1:]).abs().max() < 1e-6
    assert (after[0, :5] - before[0, :5]).abs().amax(1).min() > 1e-4


def test_the_gate_is_attention_over_tokens():
    """Expected: eq. 11 and 12 in numpy."""
    torch.manual_seed(0)
    gate = Gate(4).eval()
    tokens = torch.randn(1, 3, 4)
    present = torch.tensor([[True, True, False]])
    O = tokens[0, :2].numpy()  # noqa: E741 - the paper's letter
    key, bias, query = (
        parameter.detach().numpy() for parameter in (gate.key.weight, gate.key.bias, gate.query.weight)
    )
    score = np.tanh(O @ key.T + bias) @ query[0]
    weight = np.exp(score) / np.exp(score).sum()
    assert gate(tokens, present)[0].detach().numpy() == pytest.approx(weight @ O, abs=1e-6)


def test_ladders_climb(monkeypatch):
    """lad_2 = Ladder_2(h_4 + Ladder_1(h_2)) (eq. 10), beside the last layer, through the gate."""
    network = DomainNetwork(8, rungs=2, reduce=2, heads=1, tower=(4,), dropout=0.0).eval()
    layers = [torch.full((1, 1, 8), float(at)) for at in (2, 4, 4)]
    monkeypatch.setattr(network.ladders[0], "forward", lambda hidden, _: hidden * 10)
    monkeypatch.setattr(network.ladders[1], "forward", lambda hidden, _: hidden + 1)
    seen: list[torch.Tensor] = []

    def gate(tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        seen.append(tokens)
        return tokens[:, 0]

    monkeypatch.setattr(network.gate, "forward", gate)
    network(layers, torch.ones(1, 1, dtype=torch.bool))
    assert seen[0][0, :, 0].tolist() == [4.0, 25.0]


def test_padding_changes_nothing(teacher):
    short = rows(8)
    pad = functools.partial(torch.nn.functional.pad, pad=(0, 50), value=PAD)
    padded = replace(short, request_ids=pad(short.request_ids), item_ids=pad(short.item_ids))
    assert (teacher(padded) - teacher(short)).abs().max() < 1e-4


def test_padding_changes_nothing_where_nothing_cuts_it_off(teacher, monkeypatch):
    short = rows(8)
    pad = functools.partial(torch.nn.functional.pad, pad=(0, 25), value=PAD)
    padded = replace(short, request_ids=pad(short.request_ids), item_ids=pad(short.item_ids))
    expected = teacher(short)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert (teacher(padded) - expected).abs().max() < 1e-4


def test_a_prompt_is_the_requests_tokens_then_the_items(teacher):
    """Expected: the language model itself, on the tokens as they are read by a person."""
    one = rows(1, seed=3)
    user, item = one.request_ids[0], one.item_ids[0]
    tokens = torch.cat([user[user != PAD] - 1, item[item != PAD] - WORDS - 2])
    expected = teacher.reader.model(input_ids=tokens[None].long()).last_hidden_state
    layers, present = teacher.reader(one.request_ids, one.item_ids)
    assert present.all()
    assert (layers[-1] - expected).abs().max() < 1e-5


def test_rows_do_not_see_each_other(teacher):
    many = rows(9)
    some = torch.tensor([2, 5, 7])
    assert (teacher(many)[some] - teacher(many[some])).abs().max() < 1e-5


def test_another_domains_network_gets_no_gradient(teacher):
    teacher.train()
    mine = rows(6)
    mine = mine[mine.domain != 1]
    teacher(mine).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.networks[1].parameters())
    assert any(parameter.grad is not None for parameter in teacher.networks[0].parameters())


def test_rows_are_scored_in_an_order_of_its_own_and_given_back_in_theirs(teacher, monkeypatch):
    many = rows(40)
    monkeypatch.setattr(teacher, "most_rows", 7)
    assert (joint_logits(teacher, many) - teacher(many)).abs().max() < 1e-5


def test_both_is_two_passes_with_one_reading(teacher):
    given = rows(10)
    part = given[:4].under(D)
    expected = torch.cat([teacher(given), teacher(part)])
    assert (teacher.both(given, part) - expected).abs().max() < 1e-5


def test_the_one_domain_form_is_the_teacher(teacher):
    given = rows(12)
    logits = teacher(given)
    servable = teacher.servable().eval()
    for domain in range(D):
        mine = given.of(domain)
        found = torch.func.functional_call(servable, teacher.pack(domain), mine.arrays)
        assert (found - logits[given.domain == domain]).abs().max() < 1e-4
    general = torch.func.functional_call(servable, teacher.pack(None), given.arrays)
    assert (general - teacher(given.under(D))).abs().max() < 1e-4
    assert not any("lora" in name for name, _ in servable.named_parameters())


def test_what_is_trained(folder):
    def trained(**options) -> frozenset[str]:
        paradigm = UniCTR(Options(model=str(folder), tower=(8,), **options), SCHEMA, 1)
        return paradigm.stages()[0].trains

    model = {name for name in trained() if name.startswith("reader.")}
    assert model
    assert all(".lora_" in name for name in model)
    frozen = {name for name in trained(rank=0) if name.startswith("reader.")}
    assert frozen == set()
    last = {name for name in trained(rank=0, unfrozen=1) if name.startswith("reader.")}
    assert last
    assert all(".3." in name for name in last)
    anew = {name for name in trained(pretrained=False) if name.startswith("reader.")}
    assert any("word_embeddings" in name for name in anew)


def test_the_first_layers_alone_are_those_of_the_whole_model(teacher, folder):
    short = UniCTR(Options(model=str(folder), layers=2, tower=(8,)), SCHEMA, 1).eval()
    given = rows(3)
    found, _ = short.reader(given.request_ids, given.item_ids)
    whole = UniCTR(Options(model=str(folder), tower=(8,)), SCHEMA, 1).eval()
    expected, _ = whole.reader(given.request_ids, given.item_ids)
    assert len(found) == 2  # of one ladder, and the last again
    assert (found[0] - expected[0]).abs().max() < 1e-5
    with pytest.raises(RunError, match="has 4 layers, not 5"):
        UniCTR(Options(model=str(folder), layers=5), SCHEMA, 1)


def test_batches_hold_every_row_once_by_domain_and_length(teacher):
    given = rows(5000)
    named = replace(given, label=torch.arange(5000.0))
    batches = list(teacher.batches(named, 32, 7))
    assert sorted(torch.cat([batch.label for batch in batches]).tolist()) == list(range(5000))
    assert sum(len(torch.unique(batch.domain)) for batch in batches) < len(batches) * 1.2
    present = [(batch.request_ids != PAD, batch.item_ids != PAD) for batch in batches]
    spread = [(request.sum(1) + item.sum(1)).float().std() for request, item in present]
    assert float(torch.stack(spread).median()) < 0.6
    again = list(teacher.batches(named, 32, 7))
    assert all(torch.equal(a.label, b.label) for a, b in zip(batches, again, strict=True))
    domains = [int(batch.domain[0]) for batch in batches]
    assert domains != sorted(domains)


def test_other_data_is_refused(folder):
    schema = FeatureSchema(
        fields=tuple(
            Field(name="id", owner=owner, kind="vocabulary", values=("a",)) for owner in ("user", "item")
        )
    )
    with pytest.raises(RunError, match="source `prompts`"):
        UniCTR(Options(model=str(folder)), schema, 1)
    with pytest.raises(RunError, match=r"config\.json"):
        UniCTR(Options(model=str(folder / "nowhere")), SCHEMA, 1)
    with pytest.raises(RunError, match="every 5 layers"):
        UniCTR(Options(model=str(folder), every=5), SCHEMA, 1)


def test_in_a_reduced_type_all_of_it_is_and_its_parameters_are_not(teacher):
    some = rows(24)
    teacher.requires_grad_(requires_grad=True)
    exact = teacher(some)
    seen = []
    hook = teacher.networks[0].gate.register_forward_hook(lambda _, given, __: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        reduced = teacher(some)
    hook.remove()
    assert seen == [torch.bfloat16]
    assert reduced.dtype == torch.float32
    # Eight bits after the point: a part in 256, through four layers and a tower.
    torch.testing.assert_close(reduced, exact, rtol=0, atol=0.1)
    assert (reduced - exact).abs().max() > 0
    reduced.sum().backward()
    moved = [parameter.grad for parameter in teacher.networks[0].parameters()]
    assert all(
        grad is not None and grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in moved[:4]
    )
