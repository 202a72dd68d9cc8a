"""benchmarks/ties.py at a tiny size: rows are made once, and go on from the results file on another machine."""

import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ties():
    sys.path.insert(0, str(BENCHMARKS))
    import ties

    yield ties
    sys.path.remove(str(BENCHMARKS))


def test_rows_go_on_from_the_results_file(ties, tmp_path, monkeypatch, capsys):
    case = ties.Case(0.4, 300, ("net", {"num_channels": 6}), 3, 2, None)
    monkeypatch.setitem(ties.CASES, "digits", case)
    few = {name: ties.Thief(200, augment=None) for name in ("labels", "flips")}
    monkeypatch.setattr(ties, "THIEVES", few)
    monkeypatch.setattr(ties, "PROMISED", ("labels",))
    monkeypatch.setattr(ties, "QUERIES", 200)
    monkeypatch.setattr(ties, "SECRETS", 50)
    monkeypatch.setattr(ties, "INNOCENTS", 6)

    def call(*more):
        arguments = ["--data", "digits", "--seeds", "1", "--workers", "1", "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["ties.py", *arguments, "--out", str(tmp_path / "out.json"), *more])
        assert ties.main() == 0
        return capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())

    said, content = call()
    assert "digits: 4 pieces missing" in said
    assert list(content["seeds"]["0"]) == ["facts", "labels", "flips", "innocents"]
    assert len(content["seeds"]["0"]["innocents"]["models"]) == 6
    shutil.rmtree(tmp_path / "work")
    said, again = call("--write")
    assert "digits: 0 pieces missing" in said
    assert again["seeds"] == content["seeds"]
    # A further row of a seed whose networks are gone, and innocents without those that were taken over.
    shutil.rmtree(tmp_path / "work")
    del content["seeds"]["0"]["innocents"]
    (tmp_path / "out.json").write_text(json.dumps(content))
    few["mlp"] = ties.Thief(200, network="mlp")
    said, more = call()
    assert "digits: 2 pieces missing" in said
    rows = more["seeds"]["0"]
    assert {name: rows[name] for name in ("facts", "labels", "flips")} == {
        name: content["seeds"]["0"][name] for name in ("facts", "labels", "flips")
    }
    assert rows["mlp"]["accuracy"] > 0
    assert (
        rows["innocents"]["models"][:2] == ["the owner's model", "without-ties"]
        or len(rows["innocents"]["models"]) == 6
    )
    # Rows of other sizes are not taken over.
    empty = ties.Folder(tmp_path / "empty")
    ties.take_over(empty, ties.replace(case, epochs=4), tmp_path / "out.json")
    assert not empty.has("seed-0/results/labels")
    ties.take_over(empty, case, tmp_path / "out.json")
    assert empty.has("seed-0/results/labels")
