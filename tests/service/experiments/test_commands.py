"""`python -m service experiments`, as a user calls it."""

from __future__ import annotations

import json

import pytest

from service.__main__ import app
from service.contract import cli
from service.experiments.commands import expected
from tests.service.experiments.documents import document, experiment, read, weights


@pytest.fixture
def check(capsys, tmp_path):
    """Checks a document; gives exit code, stdout and stderr."""

    def run(data, *options):
        file = tmp_path / "experiments.json"
        file.write_text(json.dumps(data))
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app(["experiments", "check", str(file), *options]))
        return (ended.value.code, *capsys.readouterr())

    return run


RAMP = [{"at": "2000-01-01T00:00:00Z", "share": 0.5}, {"at": "2999-01-01T00:00:00Z", "share": 1}]
GOOD = document(
    [
        experiment("x", slice=[0, 0.4], ramp=RAMP, arms=weights(3, 1), domains=["books"]),
        experiment("y", slice=[0.5, 0.6]),
    ],
    [],
    holdout=0.1,
)


def test_a_table_has_layers_slices_arms_and_shares(check):
    code, out, err = check(GOOD)
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["l0", "0 to 0.4", "x", "user", "books", "a", "control", "27.00%", "13.50%"],
        ["l0", "0 to 0.4", "x", "user", "books", "b", "domain", "9.00%", "4.50%"],
        ["l0", "0.5 to 0.6", "y", "user", "all", "a", "control", "4.50%", "4.50%"],
        ["l0", "0.5 to 0.6", "y", "user", "all", "b", "fallback", "4.50%", "4.50%"],
    ]
    assert out.endswith("held out: 10.00%\n")


def test_the_same_as_json(check):
    code, out, err = check(GOOD, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["holdout"] == 0.1
    assert found["arms"][1] == {
        "layer": "l0",
        "experiment": "x",
        "unit": "user",
        "slice": [0, 0.4],
        "domains": ["books"],
        "arm": "b",
        "change": "domain",
        "stopped": False,
        "share": pytest.approx(0.09),
        "share_now": pytest.approx(0.045),
    }


def test_a_stopped_arm_has_no_share_and_the_others_keep_theirs(check):
    arms = {**weights(1, 1, 2), "b": {"weight": 1, "domain": "films", "stopped": True}}
    code, out, _ = check(document([experiment(arms=arms)]), "--json")
    assert code == 0
    assert [each["share"] for each in json.loads(out)["arms"]] == [0.25, 0, 0.5]
    assert "domain, stopped" in check(document([experiment(arms=arms)]))[1]


def test_put_checks_and_leaves_what_is_on_trial(tmp_path, capsys):
    def put(data):
        (tmp_path / "new.json").write_text(json.dumps(data))
        with pytest.raises(SystemExit) as ended:
            cli.run(
                lambda: app(["experiments", "put", str(tmp_path / "new.json"), str(tmp_path / "live.json")])
            )
        return (ended.value.code, *capsys.readouterr())

    assert put(GOOD)[0] == 0
    live = json.loads((tmp_path / "live.json").read_text())
    assert live == GOOD
    live["layers"]["canary"] = {"experiments": [experiment("trial")]}
    (tmp_path / "live.json").write_text(json.dumps(live))
    assert put(document([experiment("z")]))[0] == 0
    assert json.loads((tmp_path / "live.json").read_text())["layers"] == {
        "l0": {"experiments": [experiment("z")]},
        "canary": {"experiments": [experiment("trial")]},
    }
    code, out, err = put(document([experiment("trial")]))
    assert (code, out) == (2, "")
    assert "layers.l0 has an experiment of this name" in err
    code, out, err = put({"version": 2, "layers": {}})
    assert (code, out) == (2, "")
    lines = (tmp_path / "live.json.history").read_text().splitlines()
    assert [json.loads(json.loads(each)["document"])["layers"].keys() for each in lines] == [
        {"l0", "l1"},
        {"l0", "canary"},
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.run(lambda: app(["experiments", "check", str(tmp_path / "live.json")]))
    assert "only tools write this layer" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: app(["experiments", "check", "--canary", str(tmp_path / "live.json")]))
    assert ended.value.code == 0


def test_a_bad_document_is_one_line_with_the_place(check, capsys):
    bad = document([experiment("y", slice=[0, 0.1]), experiment(arms=weights(1, -1))])
    code, out, err = check(bad)
    assert (code, out) == (2, "")
    assert err.startswith("error: layers.l0.experiments[1].arms.b.weight: ")
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: app(["experiments", "check", str(tmp_path / "none.json")]))
    assert ended.value.code == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err


def test_a_ramp_that_ends_below_1_gets_no_more_than_that():
    found = read([experiment(ramp=[{"at": "1970-01-01T00:00:10Z", "share": 0.2}])])
    assert [(row.share, row.share_now) for row in expected(found, 0)] == [(0.1, 0.0)] * 2
    assert [row.share_now for row in expected(found, 10)] == [0.1] * 2
