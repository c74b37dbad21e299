"""What every paradigm promises, over DeepFM; over every backbone with `make test-all`."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle import build as build_bundle
from export.packs import named
from export.parity import by_row, cases, row_cases
from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.pack import GENERAL, DomainPack
from service.engines import ort_cuda
from tests.conftest import TINY, Trained, train
from training import checkpoint
from training.data.batches import Rows
from training.data.prepare import prepare
from training.fit import Fit
from training.model import build, logits
from training.paradigms._protocol import Pack
from training.recipe import Recipe
from training.stages import Stage

BACKBONES = plugins.names("training.backbones")
# Each paradigm over deepfm, and each backbone under plate; the rest is the cross product.
PAIRS = [
    pytest.param(
        (paradigm, backbone),
        marks=[pytest.mark.cross] if backbone != "deepfm" and paradigm != "plate" else [],
        id=f"{paradigm}-{backbone}",
    )
    for paradigm in plugins.names("training.paradigms")
    for backbone in BACKBONES
]


@pytest.fixture(scope="module", params=PAIRS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_root: Path
) -> Trained:
    paradigm, backbone = request.param
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(folder, data_root, paradigm={"name": paradigm}, backbone={"name": backbone})


def domains_have_nothing_in_common(trained: Trained) -> bool:
    """Whether a domain's own rows alone decide its model, so that the paradigm itself is the general one."""
    return trained.recipe.paradigm.name == "single"


def test_logits_of_rows_of_any_domain_and_of_the_general_one(trained: Trained) -> None:
    rows = trained.rows()[:50]
    paradigm = trained.model.paradigm.eval()
    with torch.inference_mode():
        assert paradigm(rows).shape == (50,)
        assert paradigm(rows[:1]).shape == (1,)
        assert paradigm(rows.under(len(trained.model.domains))).isfinite().all()


def test_a_row_does_not_depend_on_its_neighbours(trained: Trained) -> None:
    rows, paradigm = trained.rows(), trained.model.paradigm.eval()
    others = rows[:1].joined(rows[100:164])
    with torch.inference_mode():
        torch.testing.assert_close(paradigm(rows[:65])[:1], paradigm(others)[:1], rtol=0, atol=1e-6)


def test_packs_have_the_same_names_and_shapes_for_every_domain(trained: Trained) -> None:
    model = trained.model
    shapes = {name: tensor.shape for name, tensor in model.pack(None).items()}
    assert shapes.keys() == model.paradigm.owned
    for domain in model.domains:
        assert {name: tensor.shape for name, tensor in model.pack(domain).items()} == shapes


def test_stages_over_each_domain_train_only_what_a_domain_owns(trained: Trained) -> None:
    tuning = [stage for stage in trained.model.paradigm.stages() if stage.rows == "each domain"]
    assert all(stage.trains and stage.trains <= trained.model.paradigm.owned for stage in tuning)


def test_the_servable_under_a_pack_is_the_paradigm_for_that_domain(trained: Trained) -> None:
    paradigm, rows = trained.model.paradigm.eval(), trained.rows()
    if not domains_have_nothing_in_common(trained):
        for at, _ in enumerate(trained.model.domains):
            own = rows.of(at)
            with torch.inference_mode():
                expected = paradigm(own)
            torch.testing.assert_close(logits(paradigm.servable(), paradigm.pack(at), own), expected)
    with torch.inference_mode():
        expected = paradigm(rows.under(len(trained.model.domains)))
    torch.testing.assert_close(logits(paradigm.servable(), paradigm.pack(None), rows), expected)


def test_the_servable_shares_the_body_and_nothing_that_a_domain_owns(trained: Trained) -> None:
    paradigm = trained.model.paradigm
    one, two = (dict(paradigm.servable().named_parameters()) for _ in range(2))
    own = {id(parameter) for parameter in paradigm.parameters()}
    for name, parameter in one.items():
        assert (id(parameter) in own) == (name not in paradigm.owned), name
        assert (parameter is two[name]) == (name not in paradigm.owned), name


def test_tuning_moves_nothing_shared_and_no_other_domain_by_a_bit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at the live model around every tuning: what is saved and loaded again could hide a drift."""
    original, tuned = Fit._tune, []

    def watched(self: Fit, stage: Stage, domain: str, *rows: Rows) -> None:
        def scores() -> dict[str, torch.Tensor]:
            found = {d: self.model.logits(self.valid, d) for d in self.model.domains if d != domain}
            return found | {"general": self.model.logits(self.valid, None)}

        body = {name: tensor.clone() for name, tensor in self.model.paradigm.state_dict().items()}
        others = scores()
        original(self, stage, domain, *rows)
        after = self.model.paradigm.state_dict()
        assert all(torch.equal(after[name], body[name]) for name in body)
        assert all(torch.equal(found, others[name]) for name, found in scores().items())
        tuned.append(domain)

    monkeypatch.setattr(Fit, "_tune", watched)
    model = train(tmp_path / "watched", trained.data, **trained.recipe.model_dump(mode="json")).model
    assert tuned == list(model.tuned)
    assert bool(tuned) == any(stage.rows == "each domain" for stage in model.paradigm.stages())


def test_a_branch_changes_the_scores_of_its_domain_alone(trained: Trained, tmp_path: Path) -> None:
    if all(stage.rows == "all domains" for stage in trained.model.paradigm.stages()):
        assert not trained.model.tuned
        return
    anew, *others = trained.model.domains
    changed = trained.recipe.model_copy(update={"seed": 5})
    checkpoint.branch(trained.folder, tmp_path / "again", changed, trained.prepared, anew=anew)
    again = train(tmp_path / "again", trained.data, **changed.model_dump(mode="json"))
    rows = trained.rows()
    for domain in others:
        own = rows.of(trained.model.domains.index(domain))
        assert torch.equal(trained.model.logits(own, domain), again.model.logits(own, domain))
    at = trained.model.domains.index(anew)
    joint = trained.model.paradigm.pack(at)
    if all(equal(each.model.tuned[anew], joint) for each in (trained, again)):
        return  # no epoch was better than none, whatever the seed
    own = rows.of(at)
    assert not torch.equal(trained.model.logits(own, anew), again.model.logits(own, anew))


def equal(one: Pack, other: Pack) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_everything_that_the_joint_stage_trains_gets_a_gradient(data_root: Path, trained: Trained) -> None:
    recipe = Recipe.model_validate({**TINY, **trained.recipe.model_dump(mode="json"), "seed": 3})
    prepared = prepare(recipe.data.name, recipe.data.options, data_root)
    paradigm = build(recipe, prepared.schema, prepared.domains).paradigm.train()
    rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)[:512]
    both = rows.joined(rows[:64].under(len(prepared.domains)))
    (paradigm(both) * torch.randn(len(both))).sum().backward()
    (joint,) = (stage for stage in paradigm.stages() if stage.rows == "all domains")
    dead = [
        name
        for name, parameter in paradigm.named_parameters()
        if name in joint.trains and (parameter.grad is None or not parameter.grad.any())
    ]
    # The bias in front of a BatchNorm is subtracted again.
    assert not [name for name in dead if not name.endswith("bias")]


def test_checkpoint_bundle_pack_engine_give_trainings_numbers(trained: Trained, tmp_path: Path) -> None:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    bundle = build_bundle(trained.recipe, trained.prepared, trained.model, metrics, tmp_path)
    engine = plugins.load("service.engines", "ort").open(Bundle.open(bundle.path), threads=1)
    for name, data in bundle.packs():
        pack = DomainPack.from_bytes(data, bundle.base)
        pack.check(bundle.manifest)
        domain = None if name == GENERAL else name
        handle = engine.load(pack)
        for _, arrays in cases(bundle.schema, seed=1):
            with torch.inference_mode():
                servable = trained.model.paradigm.servable().eval()
                expected = torch.func.functional_call(servable, trained.model.pack(domain), arrays)
            found = engine.score(named(arrays, bundle.manifest.inputs), handle)
            off = (torch.from_numpy(np.array(found)).sigmoid() - expected.sigmoid()).abs().max()
            assert off <= 1e-5, (name, off)
    engine.close()


def test_both_graphs_give_trainings_numbers_and_a_row_does_not_depend_on_its_neighbours(
    trained: Trained, tmp_path: Path
) -> None:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    bundle = build_bundle(trained.recipe, trained.prepared, trained.model, metrics, tmp_path)
    inputs = bundle.manifest.inputs
    assert (bundle.manifest.item_halves is None) == owns_everything(trained)
    engine = plugins.load("service.engines", "ort").open(bundle, threads=1)
    servable = trained.model.paradigm.servable().eval()
    for domain in (None, trained.model.domains[-1]):
        packs = dict(bundle.packs())
        pack = DomainPack.from_bytes(packs[domain or GENERAL], bundle.base)
        handle = engine.load(pack)
        for case, rows, arrays in row_cases(bundle.schema, bundle.items, seed=2):
            if "numbers" in case:  # of a thousand deviations: training's own rounding is above the budget
                continue
            with torch.inference_mode():
                expected = torch.func.functional_call(servable, trained.model.pack(domain), arrays)
            given = {"fields": named(arrays, inputs)}
            if bundle.manifest.item_halves is not None:
                given["rows"] = by_row(arrays, rows, inputs)
            for graph, values in given.items():
                together = engine.score(values, handle)
                off = (torch.from_numpy(np.array(together)).sigmoid() - expected.sigmoid()).abs().max()
                assert off <= 1e-5, (graph, case, domain)
                for at in {0, len(rows) // 2, len(rows) - 1}:
                    alone = {k: v[at : at + 1] if k.startswith("item.") else v for k, v in values.items()}
                    np.testing.assert_allclose(
                        engine.score(alone, handle), together[at : at + 1], rtol=1e-5, atol=1e-5
                    )
    engine.close()


def test_requests_of_many_domains_in_one_launch_give_trainings_numbers(
    trained: Trained, tmp_path: Path
) -> None:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    bundle = build_bundle(trained.recipe, trained.prepared, trained.model, metrics, tmp_path, many=True)
    assert {parity.engine for parity in bundle.manifest.parity} >= {"ort_cuda, float32", "ort_cuda, float16"}
    inputs, servable = bundle.manifest.inputs, trained.model.paradigm.servable().eval()
    packs = [DomainPack.from_bytes(data, bundle.base) for _, data in bundle.packs()]
    cases = [case for case in row_cases(bundle.schema, bundle.items, seed=3) if "numbers" not in case[0]]
    for dtype, budget in (("float32", 1e-5), ("float16", 2e-3)):
        options = ort_cuda.Options(device="cpu", dtype=dtype, candidates=16, pieces=(256,), slots=len(packs))
        with closing(ort_cuda.open(bundle, 1, options)) as engine:
            handles = [engine.load(pack) for pack in packs]
            by_rows = bundle.manifest.item_halves is not None
            asked = [
                (
                    by_row(arrays, rows, inputs) if by_rows and at % 2 else named(arrays, inputs),
                    arrays,
                    at % len(packs),
                )
                for at, (_, rows, arrays) in enumerate(cases)
            ]
            jobs = engine.jobs([(given, handles[pack]) for given, _, pack in asked])
            engine.line.do(partial(engine.answer, sorted(jobs, key=lambda job: job.tables is None)))
            for job, (_, arrays, pack) in zip(jobs, asked, strict=True):
                domain = trained.model.domains[pack - 1] if pack else None
                with torch.inference_mode():
                    expected = torch.func.functional_call(servable, trained.model.pack(domain), arrays)
                assert job.logit is not None
                off = (torch.from_numpy(job.logit).sigmoid() - expected.sigmoid()).abs().max()
                assert off <= budget, (dtype, domain)


def owns_everything(trained: Trained) -> bool:
    """Whether a domain owns every tensor, so that nothing of an item is the same for all of them."""
    servable = trained.model.paradigm.servable()
    return trained.model.paradigm.owned >= {name for name, _ in servable.named_parameters()}
