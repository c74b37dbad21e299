"""Tables of a comparison, of figures written down by hand."""

from __future__ import annotations

from typing import Any

from training import figures

GAP = {"difference": -0.01234, "low": -0.02, "high": 0.005, "error": 0.006}
REPORT: dict[str, Any] = {
    "chosen_on_validation": "without",
    "rows": {
        "teacher": {"runs": ["a"], "slices": {"macro": {"auc_mean": 0.7, "auc_std": 0.0}, "a": {}}},
        "without": {"runs": ["b", "c"], "slices": {"macro": {"auc_mean": 0.71, "auc_std": 0.00123}, "a": {}}},
    },
    "differences_from": {"without": {"teacher": {"macro": GAP}}},
    "unseen": {
        "teacher": {"new": {"general_auc_mean": 0.6, "best_own_auc_mean": 0.61, "tuned_auc_mean": 0.62}},
        "mix": {"new": {"general_auc_mean": 0.5, "best_own_auc_mean": 0.5}},
    },
}


def test_differences_have_their_intervals_and_one_seed_has_no_spread() -> None:
    assert figures.differences(REPORT) == (
        "| model | AUC, macro | against without |\n"
        "| --- | --- | --- |\n"
        "| teacher | 0.7000 | -0.0123 (-0.0200 to +0.0050) |\n"
        "| **without** | 0.7100 ± 0.0012 |  |\n"
    )


def test_what_was_not_tuned_has_an_empty_cell() -> None:
    assert figures.newcomers(REPORT) == (
        "| model | general pack, new | best own domain, new | tuned, new |\n"
        "| --- | --- | --- | --- |\n"
        "| teacher | 0.6000 | 0.6100 | 0.6200 |\n"
        "| mix | 0.5000 | 0.5000 |  |\n"
    )


def test_what_was_published_stands_beside_what_was_measured() -> None:
    report = {"domains": ["a", "b"], "rows": {"mix": {"a": {"auc_mean": 0.7}, "b": {"auc_mean": 0.6}}}}
    published = {"mix": {"b": 0.65, "a": 0.71}, "not run": {"a": 0.5, "b": 0.5}}
    assert figures.beside(report, published) == (
        "| model | a | published | b | published |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| mix | 0.7000 | 0.7100 | 0.6000 | 0.6500 |\n"
    )


def test_pairs_have_a_sign_and_a_corrected_p() -> None:
    pair = {"row": "plate", "less": "mix", "difference": 0.00412, "p": 0.04321}
    assert figures.pairs({"pairs": {"asked": [pair]}}, "asked") == (
        "| model | less | macro AUC | p |\n| --- | --- | --- | --- |\n| plate | mix | +0.0041 | 0.043 |\n"
    )
