"""The simulator: what it promises of its rows, and that its probabilities are the clicks' own."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from service.contract.schema import FeatureSchema
from training.data.prepare import columns, prepare
from training.data.sources import synthetic

DOMAINS = {"feed": 6_000, "shop": 3_000, "new": 1_000}
SMALL = {"domains": DOMAINS, "users": 200, "items": 150}


def source(**options: object) -> synthetic.Synthetic:
    return synthetic.open(synthetic.Options.model_validate(SMALL | options))


def test_every_domain_has_its_rows_in_order_of_time():
    frame = source().interactions().frame
    assert dict(frame["domain"].value_counts().iter_rows()) == DOMAINS
    assert frame["time"].is_sorted()
    assert np.ptp(frame["time"].to_numpy()) < 28 * 86_400


def test_clicks_follow_the_probability():
    frame = source().interactions().frame
    # A sum of independent clicks deviates from its expectation by sqrt(sum p (1 - p)).
    for band in np.arange(0, 1, 0.1):
        rows = frame.filter(pl.col("probability").is_between(band, band + 0.1, closed="left"))
        p = rows["probability"].to_numpy()
        assert abs(rows["label"].sum() - p.sum()) <= 4 * np.sqrt((p * (1 - p)).sum())


def test_base_rates_differ_between_domains():
    means = source().interactions().frame.group_by("domain").agg(pl.col("probability").mean()).sort("domain")
    rates = means["probability"].to_list()
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1.5 * rates[-1]


def test_the_default_can_be_told_as_well_as_real_clicks():
    frame = synthetic.open(synthetic.Options()).interactions().frame
    assert frame.height == 120_000
    for (domain,), rows in frame.group_by("domain"):
        assert 0.77 < roc_auc_score(rows["label"], rows["probability"]) < 0.81, domain


def matrix(of: synthetic.Synthetic, domain: str) -> np.ndarray:
    users, items = of.taste(domain)
    return users @ items.T


def test_without_a_domain_share_all_domains_have_one_taste():
    one = source(domain_share=0)
    np.testing.assert_allclose(matrix(one, "feed"), matrix(one, "new"), atol=1e-12)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_domains_agree_as_far_as_their_taste_is_shared(share):
    some = source(users=2_000, items=1_000, domain_share=share)
    feed, shop = matrix(some, "feed").ravel(), matrix(some, "shop").ravel()
    # Correlation 1 - share in expectation; few profile and attribute values leave chance its part.
    assert np.corrcoef(feed, shop)[0, 1] == pytest.approx(1 - share, abs=0.3)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_taste_has_mean_zero_and_deviation_one(domain):
    taste = matrix(source(), domain)
    assert taste.mean() == pytest.approx(0, abs=1e-9)
    assert taste.std() == pytest.approx(1)


def test_the_rows_do_not_depend_on_the_order_of_domains():
    turned = dict(reversed(DOMAINS.items()))
    assert source().interactions().frame.equals(source(domains=turned).interactions().frame)


def test_one_more_domain_leaves_users_items_and_tastes_as_they_are():
    more = source(domains=DOMAINS | {"ads": 500})
    assert more.items().equals(source().items())
    np.testing.assert_array_equal(matrix(more, "shop"), matrix(source(), "shop"))


def test_another_seed_is_another_world():
    assert not source(seed=1).items().equals(source().items())


def test_names_and_texts_say_the_attributes():
    for item in source().items().to_dicts():
        brand, category, tags = item["item.brand"], item["item.category"], ", ".join(item["item.tags"])
        assert item["name"] == f"{brand} {category}"
        assert item["text"] == f"a product of {brand}, for {category}" + (f", tagged {tags}" if tags else "")


def test_late_items_and_users_are_new_in_the_test_rows(tmp_path):
    made = prepare("synthetic", SMALL, tmp_path)
    assert 0.02 < made.about.unseen["item.id"].rows < 0.2
    assert 0.02 < made.about.unseen["user.id"].rows < 0.2
    train, test = made.split("train"), made.split("test")
    new = test.filter(~pl.col("item.id").is_in(train["item.id"].unique().to_list()))
    rows = made.schema.encode("item", columns(new, made.schema, "item"), new.height)
    slot = made.schema.slots["item.id"]
    assert (rows.ids[:, slot.at] == slot.offset).all()


def test_without_late_ones_everybody_is_there_from_the_start():
    frame = source(late_share=0).interactions().frame
    early, late = frame.head(8_000), frame.tail(1_000)
    assert late["user.id"].is_in(early["user.id"].unique().to_list()).all()


def test_if_all_are_late_somebody_still_comes():
    assert source(late_share=1).interactions().frame.height == 10_000


def test_fields_can_be_fitted_and_a_missing_gender_is_legal():
    some = source()
    rows = some.interactions().frame.join(some.items(), on="item.id", maintain_order="left")
    schema = FeatureSchema.fit(some.fields, {field.key: rows[field.key].to_list() for field in some.fields})
    assert 0 < rows["user.gender"].null_count() < 0.2 * rows.height
    assert {field.kind for field in schema.fields} == {"vocabulary", "hashed", "number"}


@pytest.mark.parametrize(
    "wrong", [{"domains": {}}, {"domains": {"feed": 0}}, {"domain_share": 1.1}, {"users": 9}, {"noise": 1}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        synthetic.Options.model_validate(wrong)
