"""The report page: complete, self-contained, repeatable, safe, and refusing what it cannot show in full."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdb.errors import ConfigError, StorageError
from sdb.report import write_report
from sdb.report.page import axis_of, duration, plain
from sdb.report.page import render as render_checked
from sdb.report.record import REQUIRED_ROWS, read_record

OUTPUTS = ("teacher", "keyless", "keyed", "wrong_key")
GLYPHS = {
    0: ["..###...", ".##.##..", ".#...#..", ".#...#..", ".#...#..", ".#...#..", ".##.##..", "..###..."],
    1: ["...##...", "..###...", "...##...", "...##...", "...##...", "...##...", "...##...", "..####.."],
    3: [".####...", "....##..", "....##..", "..###...", "....##..", "....##..", "....##..", ".####..."],
    4: ["....#...", "...##...", "..#.#...", ".#..#...", ".######.", "....#...", "....#...", "....#..."],
    7: [".######.", ".....#..", "....##..", "....#...", "...##...", "...#....", "..##....", "..#....."],
    8: ["..###...", ".#...#..", ".#...#..", "..###...", ".#...#..", ".#...#..", ".#...#..", "..###..."],
}
ROWS: list[tuple[str, str, float, int | None, str]] = [
    ("teacher", "Teacher", 0.9889, 98_762, "The network to protect, as trained."),
    ("box.keyless", "Box, no key", 0.9861, 98_762, "What everyone gets from the box."),
    ("box.keyed", "Box, right key", 0.9917, 98_762, "What a key holder gets."),
    ("box.wrong_key", "Box, wrong key", 0.9806, 98_762, "What someone gets who guesses a key."),
    ("students.alone", "Alone, labels only", 0.9778, 5_218, "The small network without any teacher."),
    (
        "students.label_smoothing",
        "Alone, smoothed labels",
        0.9750,
        5_218,
        "The bar: no theft needed.",
    ),
    ("students.from_teacher", "From the teacher", 0.9833, 5_218, "What an unprotected model gives away."),
    ("students.thief", "Thief", 0.9139, 5_218, "Copies the box without a key."),
    ("students.partner", "Partner", 0.9861, 5_218, "Copies the box with the key."),
    ("students.wrong_key", "Thief with a wrong key", 0.9222, 5_218, "Copies the box with a guessed key."),
    ("nasty.teacher", "Nasty Teacher", 0.9694, None, "Misleads everyone; has no key."),
    ("nasty.student", "Student of the Nasty Teacher", 0.9667, 5_218, "What it leaves a thief."),
]


def softmax(logits: np.ndarray, temperature: float) -> list[float]:
    powers = np.exp((logits - logits.max()) / temperature)
    return [float(value) for value in powers / powers.sum()]


def make_record() -> dict[str, Any]:
    random = np.random.default_rng(7)

    def curve(row: tuple, epochs: int) -> dict[str, Any]:
        rise = row[2] - 0.75 * np.exp(-np.arange(1, epochs + 1) / 2.4) + random.normal(0, 0.004, epochs)
        values = [round(float(value), 4) for value in np.clip(rise, 0, 1)]
        return {"id": row[0], "label": row[1], "epochs": list(range(1, epochs + 1)), "accuracy": values}

    items = []
    for label, glyph in GLYPHS.items():
        ink = np.array([[character == "#" for character in line] for line in glyph])
        image = np.clip(ink * 235 + random.integers(0, 20, (8, 8)), 0, 255)[:, :, None]
        teacher = random.normal(0, 2.2, 10)
        teacher[label] = 13
        decoy = np.zeros(10)
        decoy[[label, (label + 3) % 10, (label + 5) % 10]] = 9, 8, 8
        items.append(
            {
                "image": image.astype(int).tolist(),
                "label": label,
                "teacher": softmax(teacher, 4),
                "keyless": softmax(decoy + random.normal(0, 0.4, 10), 4),
                "keyed": softmax(teacher + random.normal(0, 0.5, 10), 4),
                "wrong_key": softmax(decoy + random.normal(0, 0.6, 10), 4),
            }
        )
    return {
        "schema": 1,
        "kind": "demo",
        "title": "Can this network be used by all and copied by few?",
        "seed": 20_260_131,
        "seconds": 94.31,
        "method": "decoy",
        "data": {
            "name": "Handwritten digits",
            "train": 1078,
            "validation": 359,
            "test": 360,
            "classes": [str(digit) for digit in range(10)],
            "image_shape": [1, 8, 8],
            "note": "1,797 digits of 8 x 8 pixels, UCI, CC BY 4.0 (Alpaydin and Kaynak, 1998).",
        },
        "rows": [dict(zip(("id", "label", "accuracy", "parameters", "reads"), row, strict=True)) for row in ROWS],
        "curves": [
            curve(row, 20 if row[0].startswith("box") else 40) for row in ROWS if row[0] not in ("box.wrong_key",)
        ],
        "examples": {"temperature": 4.0, "items": items},
        "stages": [
            {"label": "Teacher", "seconds": 12.4},
            {"label": "Box", "seconds": 31.25},
            {"label": "Students", "seconds": 41.75},
            {"label": "Nasty Teacher and its student", "seconds": 8.9},
        ],
        "parameters": {
            "kd_temperature": 4.0,
            "kd_weight": 0.9,
            "key_blend": 0.9,
            "box_epochs": 23,
            "student_epochs": 47,
            "wrong_keys": True,
            "decoys": {"margin": 1.5, "count": 2},
        },
        "command": "sdb demo --seed 20260131 --output runs/demo",
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "device": "cpu (2 cores)",
            "commit": "ab5fc42",
            "deterministic": True,
        },
    }


@pytest.fixture
def record() -> dict[str, Any]:
    return make_record()


def render(record: dict[str, Any]) -> str:
    return render_checked(read_record(record))


def text_of(page: str) -> str:
    """What a reader sees, without markup, styles and scripts."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []
            self.muted = False

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.muted = tag == "style"

        def handle_endtag(self, tag: str) -> None:
            self.muted = False

        def handle_data(self, data: str) -> None:
            if not self.muted:
                self.parts.append(data)

    reader = Reader()
    reader.feed(page)
    return re.sub(r"\s+", " ", " ".join(reader.parts)).replace("\u00a0", " ")


def test_the_same_record_gives_the_same_bytes(record: dict[str, Any], tmp_path: Path) -> None:
    write_report(record, tmp_path / "a.html")
    write_report(copy.deepcopy(record), tmp_path / "b.html")
    first = (tmp_path / "a.html").read_bytes()
    assert first == (tmp_path / "b.html").read_bytes()
    assert len(first) < 500_000


def test_the_page_loads_nothing_and_runs_nothing(record: dict[str, Any]) -> None:
    page = render(record)
    assert not re.search(r"https?://|//[a-z]|@import|<script|<link|<iframe|url\((?!#)", page)
    assert {target[:5] for target in re.findall(r'\bsrc="([^"]*)"', page)} == {"data:"}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert "default-src 'none'" in page


def test_every_number_of_the_record_is_shown(record: dict[str, Any]) -> None:
    text = text_of(render(record))
    data = record["data"]
    wanted = [
        str(record["seed"]),
        "1 min 34 s",
        *(f"{data[part]:,}" for part in ("train", "validation", "test")),
    ]
    wanted += [" × ".join(map(str, data["image_shape"])), *data["classes"], data["note"], record["command"]]
    for row in record["rows"]:
        wanted += [f"{100 * row['accuracy']:.1f} %", row["label"], row["reads"]]
        wanted += [f"{row['parameters']:,} parameters"] if row["parameters"] else []
    for curve in record["curves"]:
        wanted += [f"{100 * value:.2f} %" for value in curve["accuracy"]]
    for item in record["examples"]["items"]:
        wanted += [f"{100 * p:.1f}" for name in OUTPUTS for p in item[name]]
    wanted += [f"{stage['seconds']:.1f} s" for stage in record["stages"]]
    for facts in (record["parameters"], record["environment"]):
        wanted += [text for name, value in facts.items() for text in (name, plain(value))]
    assert [text_ for text_ in wanted if text_ not in text] == []


def test_what_comes_from_the_record_is_escaped(record: dict[str, Any]) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    record["data"]["classes"][3] = attack
    record["title"] = attack
    record["command"] = attack
    record["parameters"] = {attack: {"a": attack}}
    for part in (*record["rows"], *record["curves"], *record["stages"]):
        part["label"] = attack
    page = render(record)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    # An attribute that the attack text closed early would show as an extra event handler.
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            seen.extend(name for name, _ in attrs)

    Reader().feed(page)
    assert not [name for name in seen if name.startswith("on")]


def test_ids_are_unique(record: dict[str, Any]) -> None:
    ids = re.findall(r'\sid="([^"]+)"', render(record))
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r"url\(#([^)]+)\)", render(record)))
    assert targets <= set(ids)


def test_rows_beyond_the_required_may_be_missing(record: dict[str, Any]) -> None:
    record["rows"] = [row for row in record["rows"] if row["id"] in REQUIRED_ROWS]
    record["curves"] = []
    record["examples"]["items"] = []
    text = text_of(render(record))
    assert "Nasty" not in text.replace("Nasty Teacher and its student", "")
    assert "How training went" not in text


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda r: r.pop("seed"), "seed"),
        (lambda r: r["data"].pop("test"), "data.test"),
        (lambda r: r["rows"][0].update(accuracy=98.9), "rows.0.accuracy"),
        (lambda r: r["rows"][0].update(accuracy=float("nan")), "rows.0.accuracy"),
        (lambda r: r["rows"].pop(0), "rows lack teacher"),
        (lambda r: r["rows"].append(r["rows"][0]), "same id twice"),
        (lambda r: r["rows"][0].update(id="students.theif"), "rows.0.id"),
        (lambda r: r["curves"][0]["epochs"].pop(), "curves.0"),
        (lambda r: r["examples"]["items"][0]["keyed"].pop(), "items.0.keyed"),
        (lambda r: r["examples"]["items"][0]["image"].pop(), "items.0.image"),
        (lambda r: r["examples"]["items"][0].update(label=10), "items.0.label"),
        (lambda r: r.update(schema=2), "schema"),
        (lambda r: r.update(audit={}), "audit"),
    ],
)
def test_a_record_that_cannot_be_shown_is_refused(spoil: Any, named: str, tmp_path: Path) -> None:
    record = make_record()
    spoil(record)
    with pytest.raises(ConfigError, match=re.escape(named)):
        write_report(record, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_named_at_once_without_outputs() -> None:
    record = make_record()
    del record["seed"], record["command"]
    record["examples"]["items"][0]["teacher"][0] = -0.123456
    with pytest.raises(ConfigError) as caught:
        render(record)
    message = str(caught.value)
    assert "3 fault(s)" in message
    assert "seed" in message
    assert "command" in message
    assert "0.123456" not in message


def test_the_old_page_stays_when_the_new_one_cannot_be_written(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdb.runtime.writing.os.replace", full)
    with pytest.raises(StorageError):
        write_report(record, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_many_classes_are_cut_to_those_that_matter(record: dict[str, Any]) -> None:
    classes = 100
    record["data"]["classes"] = [f"class {number}" for number in range(classes)]
    for item in record["examples"]["items"]:
        for name in OUTPUTS:
            item[name] = [0.4 if number == item["label"] else 0.6 / 99 for number in range(classes)]
    page = render(record)
    assert "90 others" in page
    assert page.count('<tr class="label">') == len(record["examples"]["items"])


def test_colour_images(record: dict[str, Any]) -> None:
    record["data"]["image_shape"] = [3, 8, 8]
    for item in record["examples"]["items"]:
        item["image"] = [[[pixel[0], 0, 255] for pixel in line] for line in item["image"]]
    assert render(record).count("data:image/png;base64,") == len(record["examples"]["items"])


def test_charts_follow_the_theme(record: dict[str, Any]) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', render(record), flags=re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert not re.search(r"#[0-9a-fA-F]{6}\b|<style|<metadata", chart)
        assert 'role="img" aria-label="Line chart' in chart


@pytest.mark.parametrize(
    ("lowest", "start", "ticks"),
    [(0.885, 0.88, 7), (0.97, 0.97, 4), (0.5, 0.4, 4), (0.04, 0.0, 6), (0.999, 0.99, 2)],
)
def test_the_axis_is_round_and_tight(lowest: float, start: float, ticks: int) -> None:
    found, marks = axis_of([lowest, 0.99])
    assert found <= lowest
    assert (marks[0], marks[-1]) == (pytest.approx(found), pytest.approx(1.0))
    assert 2 <= len(marks) <= 7


def test_durations() -> None:
    assert duration(0.84) == "0.8\u00a0s"
    assert duration(125.2) == "2\u00a0min 05\u00a0s"
    assert duration(59.96) == "1\u00a0min 00\u00a0s"


def test_traces_and_the_unlock_curve_are_shown_where_the_run_has_them(record):
    plain = render(record)
    assert "owner’s mark" not in plain
    assert "nearly right key" not in plain
    record["traces"] = [
        {"label": "Thief", "found": 20, "total": 20, "log10_p": -11.76, "marked": True},
        {"label": "Student alone", "found": 7, "total": 20, "log10_p": -0.7, "marked": False},
    ]
    record["unlock"] = [
        {"label": "weight key: nothing", "similarity": None, "distance": 0.333},
        {"label": "image key: <b>", "similarity": 0.95, "distance": 0.041},
    ]
    page = render(record)
    for shown in ("20 of 20", "below 1 in 10^11", "carries the mark", "0.2", "no mark found", "0.333", "0.95"):
        assert shown in page
    assert "image key: <b>" not in page
    assert page.count('class="length"') == 2
    assert "width:100.0%" in page
    assert "width:12.3%" in page
