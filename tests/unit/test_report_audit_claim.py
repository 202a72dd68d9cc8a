"""An audit's claim: what is refused, and that every fault is named at once."""

from __future__ import annotations

import copy
import json
import os
import runpy
from pathlib import Path

import pytest

from sdb.errors import ConfigError
from sdb.report.claim import read_claim
from sdb.report.files import load_claim

make_claim = runpy.run_path(str(Path(__file__).with_name("audit_claims.py")))["make_claim"]


@pytest.fixture(scope="module")
def whole():
    return make_claim(pairs={"labels": 0.1, "distil": -0.2})


@pytest.fixture
def claim(whole):
    return copy.deepcopy(whole)


def test_a_whole_claim_is_read(claim):
    found = read_claim(claim)
    assert found.target == "box"
    assert found.cell("box", "distil").status == "done"
    assert found.cell("box", "nothing") is None
    assert found.defence("none").title == "No defence"
    assert found.attack("averager").source == "arXiv 2507.00012"


def test_it_is_the_same_from_its_file(claim, tmp_path):
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    assert load_claim(tmp_path / "claim.json") == read_claim(claim)


def test_without_a_box_the_decoy_box_is_what_was_audited(claim):
    claim["box"] = None
    claim["defences"][-1]["name"] = "decoy"
    for cell in claim["cells"]:
        cell["defence"] = "decoy" if cell["defence"] == "box" else cell["defence"]
    assert read_claim(claim).target == "decoy"


def test_all_faults_are_named_at_once_with_their_paths(claim):
    claim["colour"] = "red"
    claim["seeds"][0] = "0"
    claim["cells"][0]["seeds"][0]["accuracy"] = 98.6
    claim["defences"][2]["distance"][1] = float("nan")
    del claim["data"]["proxy"]
    claim["threat"] = "leak"
    with pytest.raises(ConfigError, match=r"6 fault\(s\)") as error:
        read_claim(claim)
    message = str(error.value)
    for path in (
        "colour",
        "seeds.0",
        "cells.0.seeds.0.accuracy",
        "defences.2.distance.1",
        "data.proxy",
        "threat",
    ):
        assert f"{path}: " in message


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("references.teacher.0", NAN),
        ("references.own_distance.2", INF),
        ("cells.3.seeds.1.accuracy", -INF),
        ("cells.3.seeds.1.gap_closed", NAN),
        ("cells.3.seeds.1.gap_closed", -1e308),
        ("cells.3.seeds.1.gap_closed", 1.5),
        ("cells.3.seeds.1.queries", 10**400),
        ("cells.3.seeds.1.details.loss", NAN),
        ("cells.3.seeds.1.details.tried.deep.0", INF),
        ("attacks.0.parameters.temperature", INF),
        ("defences.1.parameters.temperature", -INF),
        ("defences.1.seconds.0", 1e308),
        ("defences.1.distance.0", 1e300),
        ("controls.labels.positive.needed", NAN),
        ("controls.labels.positive.closed", NAN),
        ("controls.labels.negative.limit", 3.0),
        ("settings.learning_rate", NAN),
        ("student.arguments.width", INF),
        ("environment.load", INF),
        ("unlock.1.similarity", NAN),
        ("traces.0.log10_p", -INF),
        ("data.test", 10**400),
        ("data.test", 0),
        ("box.bits", NAN),
        ("pairs.ways.attack/labels.test.3", NAN),
        ("seconds", NAN),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(claim, tmp_path, place, value):
    claim["cells"][3]["seeds"][1]["details"]["tried"] = {"deep": [0.5]}
    at = claim
    *path, last = place.split(".")
    for name in path:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[int(last) if isinstance(at, list) else last] = value
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    with pytest.raises(ConfigError) as error:
        read_claim(claim)
    assert f"(1 fault(s)): {place}: " in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_claim(tmp_path / "claim.json")
    assert (f"(1 fault(s)): {place}: " if value != 10**400 else "is beyond 64 bits") in str(error.value)


def as_schema_2(claim):
    """As `sdb audit` wrote claims before there were pairs."""
    older = copy.deepcopy(claim) | {"schema": 2, "data_share": 0.5}
    for name in ("regime", "given", "pairs"):
        del older[name]
    bar = older["references"].pop("bar")
    older["references"] |= {"alone": bar["alone"], "label_smoothing": bar["label smoothing"]}
    for part in (older["references"], *older["defences"]):
        for name in ("calibration_error", "brier", "bits"):
            part.pop(name, None)
    for name in ("levels", "bits"):
        del older["box"][name]
    return older


def test_a_claim_of_schema_2_is_read(claim):
    older = as_schema_2(claim)
    found = read_claim(older)
    assert found.references.bar == claim["references"]["bar"]
    assert (found.pairs, found.given, found.regime.labelled) == (None, False, claim["data"]["train"])
    older["data_share"] = 1.5
    with pytest.raises(ConfigError, match="data_share"):
        read_claim(older)


def test_a_claim_of_schema_1_is_read(claim):
    claim |= {"pairs": None}
    older = as_schema_2(claim) | {"schema": 1}
    for control in older["controls"].values():
        del control["positive"]["closed"], control["positive"]["closed_needed"]
    before = copy.deepcopy(older)
    found = read_claim(older)
    assert older == before
    assert found.controls["pruning"].positive.closed is None
    same = read_claim(as_schema_2(claim))
    assert found.model_dump(exclude={"controls"}) == same.model_dump(exclude={"controls"})
    assert claim["controls"]["pruning"]["positive"]["closed"] is not None
    older["controls"]["labels"]["positive"] = 3
    with pytest.raises(ConfigError, match=r"controls\.labels\.positive: "):
        read_claim(older)
    older["controls"] = []
    with pytest.raises(ConfigError, match="controls: "):
        read_claim(older)


def drop_cell(claim):
    claim["cells"] = [c for c in claim["cells"] if (c["defence"], c["attack"]) != ("box", "distil")]


def lose_a_seed(claim):
    next(c for c in claim["cells"] if c["defence"] == "box" and c["status"] == "done")["seeds"].pop()


SPOILT = {
    "cells lack box under distil": drop_cell,
    "of [0, 1, 2]": lose_a_seed,
    "references.bar.alone holds 2 values for 3 seeds": lambda claim: claim["references"]["bar"]["alone"].pop(),
    "references.bar lacks 'alone', which the pairs have": lambda claim: claim["references"]["bar"].pop("alone"),
    "bar/alone holds 23 values for 24 pairs": lambda claim: claim["pairs"]["ways"]["bar/alone"]["test"].pop(),
    "no way of bare/": lambda claim: claim["pairs"]["ways"].pop("bare/T=4"),
    "defences.0.partner holds 4 values": lambda claim: claim["defences"][0]["partner"].append(None),
    "attacks hold 'labels' twice": lambda claim: claim["attacks"].append(claim["attacks"][0]),
    "there twice": lambda claim: claim["cells"].append(claim["cells"][0]),
    "no such defence or attack": lambda claim: claim["cells"][0].update(attack="magic"),
    "controls.magic: no such attack": lambda claim: claim["controls"].update(magic=claim["controls"]["labels"]),
    "neither 'box' nor 'decoy'": lambda claim: claim["defences"][-1].update(name="crate"),
    "seeds hold a seed twice": lambda claim: claim["seeds"].__setitem__(1, 0),
}


@pytest.mark.parametrize("fault", SPOILT, ids=list(SPOILT))
def test_parts_that_do_not_fit_are_refused(claim, fault):
    SPOILT[fault](claim)
    with pytest.raises(ConfigError) as error:
        read_claim(claim)
    assert fault in str(error.value)


def test_a_cell_that_failed_may_have_some_of_its_seeds(claim):
    cell = next(c for c in claim["cells"] if c["defence"] == "box" and c["status"] == "done")
    cell["status"] = "failed"
    cell["seeds"].pop()
    assert len(read_claim(claim).cell("box", cell["attack"]).seeds) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"schema": 1, "kind": "au', "half written"),
        (b"", "half written"),
        (b"\xff\xfe\x00", "half written"),
        (b"[" * 100_000, "half written"),
        (b"[1, 2]", "a JSON list"),
        (b"{}", "not an audit's claim"),
        (b'{"kind": "audit"}', "schema: no number"),
        (b'{"kind": "audit", "schema": 4}', "read it with the version of sdb that wrote it"),
        (b'{"kind": "audit", "schema": true}', "schema: no number"),
        (b'{"kind": "audit", "schema": 0}', "reads 1, 2, 3"),
        (b'{"kind": "audit", "schema": 3}', "fault(s)"),
        (b'{"schema": 1, "kind": "demo"}', "a demo's record, not an audit's claim: `sdb report show "),
    ],
)
def test_files_that_are_no_claim_are_named(tmp_path, content, said):
    path = tmp_path / "claim.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_claim(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=str(path)):
            load_claim(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "claim.json"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ConfigError, match="at most 67,108,864"):
        load_claim(path)
