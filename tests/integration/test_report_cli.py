"""`sdb report` as a user has it: page, table and comparison of an audit's claim, and what is refused."""

from __future__ import annotations

import html
import json
import re
import runpy
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
make_claim = runpy.run_path(str(UNIT / "audit_claims.py"))["make_claim"]
make_record = runpy.run_path(str(UNIT / "test_report.py"))["make_record"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    for name, changes in {"holds": {}, "broken": {"broken": "distil"}, "few": {"threat": "shipped"}}.items():
        (folder / f"{name}.json").write_text(json.dumps(make_claim(**changes)))
    other = make_claim()
    other["interface"] = "labels"
    (folder / "labels.json").write_text(json.dumps(other))
    (folder / "open.json").write_text(json.dumps(make_claim(lost=1.1)))
    (folder / "record.json").write_text(json.dumps(make_record()))
    (folder / "half.json").write_text((folder / "holds.json").read_text()[:5000])
    return folder


def test_show_writes_a_page_and_says_the_verdict(quick_sdb, place):
    done = quick_sdb("report", "show", "holds.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Established: the box holds behind an API \(smallest gain that could have been seen: \d\.\d to \d\.\d points, "
        r"by attack\)\. Report: holds\.html\n",
        done.stderr,
    )
    first = (place / "holds.html").read_bytes()
    assert first.startswith(b"<!doctype html>")
    assert quick_sdb("report", "show", "holds.json", "--out", "sub/again.html", cwd=place).returncode == 0
    assert (place / "sub" / "again.html").read_bytes() == first


def test_a_folder_is_shown_by_what_it_holds(quick_sdb, place, tmp_path):
    (tmp_path / "record.json").write_bytes((place / "record.json").read_bytes())
    done = quick_sdb("report", "show", ".", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "report.html").exists(), done.stderr
    (tmp_path / "empty").mkdir()
    refused = quick_sdb("report", "show", "empty", cwd=tmp_path)
    assert refused.returncode == 2 and "a folder without claim.json and record.json" in refused.stderr


def test_text_and_page_say_the_same_where_nothing_is_settled(quick_sdb, place):
    done = quick_sdb("report", "show", "open.json", cwd=place)
    assert done.stderr.startswith("Not settled: ")
    page = (place / "open.html").read_text()
    assert '<section class="verdict open"' in page
    assert done.stderr.partition(". Report")[0] in html.unescape(page)


def test_show_shows_a_demos_record_too(quick_sdb, place):
    done = quick_sdb("report", "show", "record.json", cwd=place)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == ("4 promises: 4 not settled: too few seeds (1; 3 are needed). Report: report.html\n")
    page = (place / "report.html").read_text()
    assert "4 promises: 4 not settled: too few seeds (1; 3 are needed)" in page


def test_the_committed_claims_are_read_and_compared(quick_sdb, place):
    """They are of schema 1, and of different things: verdicts and settings are told apart, cells are not compared."""
    first, second = RESULTS / "audit-digits.json", RESULTS / "audit-digits-scarce.json"
    assert json.loads(first.read_text())["schema"] == json.loads(second.read_text())["schema"] == 1
    for path, said in ((first, "Nothing at stake here: "), (second, "Broken: the box does not keep")):
        done = quick_sdb("report", "show", str(path), "--out", "kept.html", cwd=place)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(said)
    done = quick_sdb("report", "compare", str(first), str(second), cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| data.train | 1167 | 117 |" in done.stdout
    assert "Cells are not compared: these audits differ in data.train, " in done.stdout
    done = quick_sdb("report", "compare", str(first), str(first), cwd=place)
    assert done.stdout.startswith("Same verdict:")
    assert "cell(s) stayed within their intervals." in done.stdout


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
        (("show", "holds.json", "--out", "holds.json"), "is the file itself that is shown"),
        (("table", "half.json"), "half.json"),
        (("show", "record.json", "--out", "record.json"), "is the file itself that is shown"),
        (
            ("table", "record.json"),
            "record.json: a demo's record, not an audit's claim: `sdb report show record.json`",
        ),
        (("compare", "holds.json", "record.json"), "a demo's record"),
        (("show", str(RESULTS / "digits-main.json")), "not an audit's claim"),
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
