"""The audit's page and table: complete, self-contained, repeatable, safe, and honest about what is not known."""

from __future__ import annotations

import copy
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdb.errors import ConfigError, StorageError
from sdb.report.audit_charts import frontier
from sdb.report.audit_page import render, standings_of, write_audit_report
from sdb.report.audit_verdict import judge
from sdb.report.claim import read_claim
from sdb.report.intervals import points
from sdb.report.markdown import escaped, markdown_table

make_claim = runpy.run_path(str(Path(__file__).with_name("audit_claims.py")))["make_claim"]

KINDS = {
    "holds": {},
    "broken": {"threat": "shipped", "broken": "tuned_distil"},
    "open": {
        "seeds": 1,
        "key": False,
        "everywhere": False,
        "failed": ("distil",),
        "failed_controls": ("averager",),
    },
}


class Reader(HTMLParser):
    """Text and tags of a page; complains about what is not closed."""

    EMPTY = frozenset({"meta", "img", "br", "path", "use", "rect", "link"})

    def __init__(self):
        super().__init__()
        self.parts, self.open, self.tags, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert tag in self.EMPTY or self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.parts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.parts)).replace("\u00a0", " ")


def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


@pytest.fixture(scope="module", params=KINDS)
def claim(request):
    return make_claim(**KINDS[request.param])


@pytest.fixture(scope="module")
def page(claim):
    return render(read_claim(claim))


def test_the_same_claim_gives_the_same_bytes(claim, page, tmp_path):
    write_audit_report(copy.deepcopy(claim), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page
    assert len(page) < 500_000


def test_it_loads_nothing_and_runs_nothing(page):
    assert not re.search(r"https?://|//[a-z]|@import|<script|<link|<iframe|<img|url\((?!#)", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert "default-src 'none'" in page


def test_it_can_be_read_without_seeing_it(page):
    reader = read(page)
    assert len(reader.ids) == len(set(reader.ids))
    named = {attrs["aria-labelledby"] for tag, attrs in reader.tags if tag == "section"}
    assert named <= set(reader.ids)
    assert sum(tag == "h1" for tag, _ in reader.tags) == 1
    assert all("scope" in attrs for tag, attrs in reader.tags if tag == "th")
    charts = [attrs for tag, attrs in reader.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 3
    assert all(len(attrs["aria-label"]) > 40 for attrs in charts)


def test_a_short_audit_is_said_to_be_short():
    claim = make_claim()
    kept = {"labels", "distil"}
    for name, key in (("attacks", "name"), ("cells", "attack")):
        claim[name] = [row for row in claim[name] if row[key] in kept]
    claim["controls"] = {name: claim["controls"][name] for name in kept}
    assert "only 2 attacks of the declared threat model" in read(render(read_claim(claim))).text


def test_the_verdict_comes_first(page):
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert re.search("Established|Broken|Not settled", headings[0])


def test_every_number_of_the_claim_is_shown(claim, page):
    text, found = read(page).text, read_claim(claim)
    verdict = judge(found)
    data = claim["data"]
    wanted = [f"{data[part]:,}" for part in ("train", "validation", "test")]
    wanted += [
        claim["command"],
        data["note"],
        data["proxy"],
        *data["classes"],
        claim["started"],
        claim["finished"],
    ]
    for row in (*claim["attacks"], *claim["defences"]):
        wanted += [row["summary"], row["source"]]
    for cell in verdict.cells:
        if cell.gap is not None:
            wanted += [points(cell.gap.value), f"± {100 * cell.gap.half:.1f}"]
    for cell in claim["cells"]:
        if cell["defence"] == "box":
            wanted += [f"{100 * trial['accuracy']:.2f} %" for trial in cell["seeds"]]
    for row in claim["unlock"]:
        wanted += [row["label"], f"{row['distance']:.3f}"]
    for name, value in claim["environment"].items():
        wanted += [name, value]
    assert [each for each in wanted if each not in text] == []


def test_what_is_not_known_is_said():
    text = read(render(read_claim(make_claim(**KINDS["open"])))).text
    assert "Not settled" in text
    assert "failed: its loss was no longer finite" in text
    assert "its positive control failed" in text
    assert "not applicable: a weight key" in text


def test_a_recovered_teacher_is_shown_and_explained():
    text = read(render(read_claim(make_claim(threat="shipped")))).text
    assert "retrain_public rebuilt the teacher, closing 93 % of the distance to it from a network" in text
    assert "even where the copy’s accuracy does not show it" in text


def spoil(value, attack):
    """Put an attack into every free text of a JSON value."""
    kept = {"name", "defence", "attack", "status", "needs", "threat", "interface", "kind"}
    if isinstance(value, dict):
        return {key: each if key in kept else spoil(each, attack) for key, each in value.items()}
    if isinstance(value, list):
        return [spoil(each, attack) for each in value]
    return value + attack if isinstance(value, str) else value


def test_what_comes_from_the_claim_is_escaped():
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    claim = spoil(make_claim(failed=("distil",), failed_controls=("averager",)), attack)
    for rows, key in ((claim["attacks"], "attack"), (claim["defences"], "defence")):
        name = rows[3]["name"]
        rows[3]["name"] = attack
        for cell in claim["cells"]:
            cell[key] = attack if cell[key] == name else cell[key]
        if name in claim["controls"]:
            claim["controls"][attack] = claim["controls"].pop(name)
    claim["attacks"][0]["parameters"] = claim["settings"] = {attack: {attack: attack}}
    checked = read_claim(claim)
    page = render(checked)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    read(page)
    assert "<script" not in markdown_table(checked).replace("\\<script", "")


def test_an_audit_without_cells_elsewhere_has_a_page():
    claim = make_claim()
    claim["cells"] = [cell for cell in claim["cells"] if cell["defence"] == "box"]
    claim["unlock"], claim["traces"] = [], []
    reader = read(render(read_claim(claim)))
    assert {"unlock", "traces"}.isdisjoint(reader.ids)


def test_an_audit_where_nothing_counts_has_a_page():
    claim = make_claim(failed_controls=tuple(a["name"] for a in make_claim()["attacks"]))
    assert "Not settled" in read(render(read_claim(claim))).text


def test_a_bad_claim_or_place_leaves_what_was_there(tmp_path):
    place = tmp_path / "report.html"
    place.write_text("old")
    with pytest.raises(ConfigError):
        write_audit_report({"schema": 1}, place)
    assert place.read_text() == "old"
    with pytest.raises(StorageError):
        write_audit_report(make_claim(seeds=1), place / "below" / "report.html")


def test_the_frontier_is_what_nothing_beats_in_both():
    assert frontier([(0, 1), (1, 0), (0, 0), (1, 0), (0.5, 0.5)]) == [True, True, False, True, True]
    assert frontier([(2, 2), (1, 1)]) == [True, False]


def test_thieves_and_partners_are_held_against_the_same_bar():
    claim = read_claim(make_claim(everywhere=False))
    rows = {row.name: row for row in standings_of(claim, judge(claim))}
    assert rows["box"].number == 1
    assert rows["labels_only"].fewer
    assert not rows["none"].fewer
    assert rows["none"].attack == "tuned_distil"
    assert rows["labels_only"].partner is None
    assert rows["box"].partner.value > 0 > rows["box"].thief.value
    assert all(row.attack != "partial_key" for row in rows.values())


def test_the_table_has_a_row_per_attack_and_a_column_per_defence(claim):
    found = read_claim(claim)
    lines = markdown_table(found).splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(claim["defences"]) + 1}
    names = [row[0].strip().replace("\\", "") for row in rows]
    assert [name for name in names if name in {a["name"] for a in claim["attacks"]}] == [
        a["name"] for a in claim["attacks"]
    ]
    assert "The bar, the same small network trained alone on smoothed labels" in lines[-1]


def test_the_table_marks_gains_distrust_and_recovery():
    table = markdown_table(read_claim(make_claim(broken="distil", failed_controls=("averager",))))
    first = {
        line.split(" | ")[0][2:].replace("\\", ""): line.split(" | ")[1]
        for line in table.splitlines()
        if " | " in line
    }
    assert re.fullmatch(r"\*\*97\.\d ± \d\.\d\*\*", first["distil"])
    assert re.fullmatch(r"94\.\d ± \d\.\d†", first["averager"])
    assert first["retrain_public"].endswith("‡")
    assert first["random_keys"] == "n/a"


def test_text_stays_in_its_cell():
    assert escaped("a|b\nc*`<x>") == r"a\|b c\*\`\<x\>"
