from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from training.search import Search, Setting, Study, best

SEARCH = Search(trials=12, lr=(1e-4, 1e-1), l2=(1e-6, 1e-3), epochs=(1, 5))


def score(setting: Setting) -> float:
    """Highest at a rate of 1e-2, whatever else."""
    return -abs(math.log10(setting["lr"]) + 2)


def searched(trials: int) -> list[tuple[Setting, float]]:
    study = Study(SEARCH, 0, {"schedule": "linear"})
    first: Setting = {"lr": 1e-3, "l2": 1e-5, "epochs": 2}
    tried = [(first, score(first))]
    study.tell(*tried[0])
    for _ in range(trials):
        setting = study.ask()
        tried.append((setting, score(setting)))
        study.tell(*tried[-1])
    return tried


def test_what_is_asked_lies_within_bounds_and_has_what_else_is_known() -> None:
    for setting, _ in searched(12)[1:]:
        assert 1e-4 <= setting["lr"] <= 1e-1
        assert 1e-6 <= setting["l2"] <= 1e-3
        assert setting["epochs"] in range(1, 6)
        assert setting["schedule"] == "linear"
        assert setting["lr"] == float(f"{setting['lr']:.2e}")


def test_the_same_is_asked_again_after_the_same_scores() -> None:
    assert searched(6) == searched(6)


def test_later_settings_are_nearer_to_the_best_than_those_at_random() -> None:
    scores = [reached for _, reached in searched(24)]
    assert sum(scores[13:]) / 12 > sum(scores[1:5]) / 4


def test_a_setting_out_of_bounds_or_without_a_score_teaches_nothing() -> None:
    def asked(*told: tuple[Setting, float]) -> Setting:
        study = Study(SEARCH, 0, {})
        for setting, reached in told:
            study.tell(setting, reached)
        return study.ask()

    inside: Setting = {"lr": 1e-2, "l2": 1e-5, "epochs": 2}
    nothing = [(inside | {"lr": 1.0}, 1.0), (inside, math.nan), ({"lr": 1e-2}, 1.0)]
    assert asked(*nothing) == asked()


def test_the_best_is_the_first_of_equals_and_no_score_is_the_lowest() -> None:
    assert best([({"at": 0}, math.nan), ({"at": 1}, 0.5), ({"at": 2}, 0.5)]) == {"at": 1}


def test_bounds_have_an_order() -> None:
    with pytest.raises(ValidationError, match="descending order: l2"):
        Search(trials=1, lr=(1e-3, 1e-3), l2=(1e-3, 1e-4), epochs=(1, 1))
