"""`sdb report` as a user has it: page, table and comparison of an audit's claim, and what is refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
make_claim = runpy.run_path(str(UNIT / "audit_claims.py"))["make_claim"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    for name, changes in {"holds": {}, "broken": {"broken": "distil"}, "few": {"threat": "shipped"}}.items():
        (folder / f"{name}.json").write_text(json.dumps(make_claim(**changes)))
    other = make_claim()
    other["interface"] = "labels"
    (folder / "labels.json").write_text(json.dumps(other))
    (folder / "half.json").write_text((folder / "holds.json").read_text()[:5000])
    return folder


def test_show_writes_a_page_and_says_the_verdict(quick_sdb, place):
    done = quick_sdb("report", "show", "holds.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Passed: the box holds behind an API. Report: holds.html\n"
    first = (place / "holds.html").read_bytes()
    assert first.startswith(b"<!doctype html>")
    assert quick_sdb("report", "show", "holds.json", "--out", "sub/again.html", cwd=place).returncode == 0
    assert (place / "sub" / "again.html").read_bytes() == first


def test_table_prints_markdown_only(quick_sdb, place):
    done = quick_sdb("report", "table", "holds.json", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("|  | The audited box | No defence |")


def test_compare_prints_what_moved(quick_sdb, place):
    done = quick_sdb("report", "compare", "holds.json", "broken.json", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Verdict changed:")
    assert "| distil | box |" in done.stdout
    done = quick_sdb("report", "compare", "holds.json", "few.json", cwd=place)
    assert "| threat | api | shipped |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "none.json"), "none.json: No such file"),
        (("show", "half.json"), "half.json: not a whole JSON file; it may be half written"),
        (("show", "holds.json", "--out", "holds.json"), "is the claim itself"),
        (("table", "half.json"), "half.json"),
        (("compare", "holds.json", "labels.json"), "differ in interface: logits and labels"),
        (("compare", "holds.json", "half.json"), "half.json"),
    ],
)
def test_what_a_user_can_mend_is_one_line(quick_sdb, place, arguments, said):
    before = (place / "holds.json").read_bytes()
    done = quick_sdb("report", *arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (place / "half.html").exists()
    assert (place / "holds.json").read_bytes() == before
