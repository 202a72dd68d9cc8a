"""The evidence table at a tiny size: pieces are kept, done once, and become the section of docs/results.md."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(BENCHMARKS))
    import evidence
    import evidence_cases
    import evidence_page

    yield evidence, evidence_cases, evidence_page
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def call(modules, tmp_path_factory):
    """A function that calls the command, and the folder that it writes to."""
    place = tmp_path_factory.mktemp("evidence")

    def run(*more, monkeypatch):
        arguments = ["--data", "tiny", "--seeds", "1", "--workers", "1", "--work", str(place / "work")]
        monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, "--out", str(place / "out.json"), *more])
        return modules[0].main()

    return run, place


def test_a_table_grows_and_a_second_call_does_nothing(call, modules, monkeypatch, capsys):
    run, place = call
    evidence, cases, page = modules
    few = {"none": "unprotected", "decoy": "our box", "labels_only": "top-1 server"}
    for module in (evidence, cases, page):
        monkeypatch.setattr(module, "ROWS", few)
    monkeypatch.setitem(cases.CASES, "tiny", replace(cases.TINY, students={"net": cases.SMALL_NET}))
    assert run("--plan", monkeypatch=monkeypatch) == 0
    assert "0 of 17 pieces are done; 17 missing" in capsys.readouterr().out
    assert not (place / "out.json").exists()
    assert run("--rows", "none", monkeypatch=monkeypatch) == 0
    rows = {(piece["kind"], piece["row"]) for piece in json.loads((place / "out.json").read_text())["pieces"]}
    assert rows == {("teacher", ""), ("defence", "none"), ("facts", "none"), ("pair", "none")}
    with pytest.raises(SystemExit):
        run("--rows", "none,nobody", monkeypatch=monkeypatch)
    assert "rows are none, decoy, labels_only" in capsys.readouterr().err
    assert run(monkeypatch=monkeypatch) == 0
    content = json.loads((place / "out.json").read_text())
    assert content["missing"] == []
    assert page.markdown(content).startswith("## evidence: tiny\n")
    for piece in content["pieces"]:
        piece["machine"]["images"] = "CIFAR-10 (JPEG): not the originals"
    assert page.markdown(content).startswith("## evidence: tiny (JPEG)\n")
    assert all(piece["seconds"] > 0 and piece["machine"]["torch"] for piece in content["pieces"])
    table = [line for line in page.markdown(content).splitlines() if line.startswith("| 1, 3 |")]
    assert [line.split(" | ")[1] for line in table] == list(few.values())
    assert "at most" in table[1]  # the trace of our box
    (mark,) = (piece for piece in content["pieces"] if piece["kind"] == "mark")
    assert mark["coins"]["seen"] < mark["coins"]["needed"]
    assert "too few | – |" in table[1]
    written = {path: path.stat().st_mtime_ns for path in place.rglob("*.*")}
    assert run(monkeypatch=monkeypatch) == 0
    assert "17 of 17 pieces are done; 0 missing" in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in place.rglob("*.*")}
    # The file of a killed call is written by the next.
    (place / "out.json").unlink()
    assert run(monkeypatch=monkeypatch) == 0
    assert json.loads((place / "out.json").read_text())["missing"] == []
    # What is lost is made again, and comes out the same.
    lost = place / "work" / "seed-0" / "results" / "seed-0-decoy-pair-net-2.json"
    before = json.loads(lost.read_text())["ways"]
    lost.unlink()
    assert run("--plan", monkeypatch=monkeypatch) == 0
    assert "16 of 17 pieces are done; 1 missing, about 0 minutes" in capsys.readouterr().out
    assert run(monkeypatch=monkeypatch) == 0
    assert json.loads(lost.read_text())["ways"] == before
    # On another machine the rows of a seed that the file has whole are not done again.
    monkeypatch.setattr(evidence, "ROWS", few | {"nasty": "nasty teacher"})
    shutil.rmtree(place / "work")
    assert run("--plan", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "16 of 22 pieces are done; 6 missing" in said
    assert {line.strip() for line in said.splitlines()[1:]} >= {"seed 0 teacher", "seed 0 nasty defence"}
    monkeypatch.setattr(evidence, "ROWS", few)
    shutil.rmtree(place / "work")
    assert run("--plan", monkeypatch=monkeypatch) == 0
    assert "17 of 17 pieces are done; 0 missing" in capsys.readouterr().out
    content["pieces"] = [each for each in content["pieces"] if (each["row"], each["pair"]) != ("decoy", 2)]
    (place / "out.json").write_text(json.dumps(content))
    shutil.rmtree(place / "work")
    assert run("--plan", monkeypatch=monkeypatch) == 0
    assert "10 of 17 pieces are done; 7 missing" in capsys.readouterr().out
    # Pieces of other sizes do not come into one table.
    (place / "work" / "case.json").write_text("{}")
    monkeypatch.setitem(cases.CASES, "tiny", replace(cases.CASES["tiny"], student_epochs=3))
    assert run(monkeypatch=monkeypatch) == 2
    assert "other sizes (case.json)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cifar10-gpu", "cifar100-gpu", "fashion_mnist"])
def test_the_networks_of_a_case_can_be_made(modules, name):
    from sdb.models import build

    case = modules[1].CASES[name]
    for architecture, arguments in (case.teacher, *case.students.values()):
        assert build(architecture, num_classes=10, image_shape=(3, 32, 32), arguments=arguments)


def test_a_call_ends_when_its_time_is_over_and_the_next_goes_on(modules, monkeypatch, capsys, tmp_path):
    """As on a machine that is lent for minutes: within a teacher's training too."""
    evidence, cases, page = modules
    for module in (evidence, cases, page):
        monkeypatch.setattr(module, "ROWS", {"none": "unprotected"})
    long = replace(cases.TINY, students={"net": cases.SMALL_NET}, epochs=400, student_epochs=1)
    monkeypatch.setitem(cases.CASES, "tiny", long)
    arguments = ["--data", "tiny", "--seeds", "1", "--workers", "1", "--work", str(tmp_path / "work")]
    arguments += ["--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, "--minutes", "0.05"])
    assert evidence.main() == 0
    said = capsys.readouterr()
    assert "0.05 minutes are over; the same command goes on" in said.err
    metrics = tmp_path / "work" / "seed-0" / "teacher" / "metrics.jsonl"
    first = metrics.read_text().splitlines()
    assert 0 < len(first) < 400
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments])
    assert evidence.main() == 0
    assert json.loads((tmp_path / "out.json").read_text())["missing"] == []
    assert metrics.read_text().splitlines()[: len(first)] == first


def pair(row, number, **ways):
    ways = {way.replace("__", "/"): [value, value] for way, value in ways.items()}
    return {"kind": "pair", "seed": 0, "row": row, "student": "net", "pair": number, "ways": ways}


def test_gains_are_over_the_bar_and_what_classes_alone_give(modules):
    alone = {"bar/alone": [0.5, 0.5], "bar/label smoothing": [0.6, 0.6]}
    pieces = []
    for number in range(3):
        none = pair("none", number, thief__soft=0.9)
        none["ways"] |= alone
        ours = pair(
            "decoy", number, bar__top=0.7, thief__soft=0.65, attack__margin_queries=0.8, partner__soft=0.95
        )
        ours["ways"]["top1/margin_queries"] = [0.78, 0.78]
        pieces += [none, ours]
    gains = {
        name: round(100 * found.value, 6)
        for name, (_, found) in modules[2].gains_of(pieces, "decoy", "net").items()
    }
    assert gains == {"bare": 20, "plain": -5, "thief": 2, "partner": 5}
    # Of a server that tells classes alone, what chosen questions add.
    top = [
        pair("labels_only", number, bar__top=0.7, top1__margin_queries=0.75) | {"student": "net"}
        for number in range(3)
    ]
    name, found = modules[2].gains_of([*pieces, *top], "labels_only", "net")["thief"]
    assert (name, round(100 * found.value, 6)) == ("top1/margin_queries", 5)
    # A pair without its unprotected twin does not count.
    more = [*pieces, pair("decoy", 7, bar__top=0.1, thief__soft=0.9)]
    assert modules[2].gains_of(more, "decoy", "net")["plain"][1].pairs == 3


def test_what_is_asked_of_our_box_is_shown_as_reached_or_missed(modules):
    pieces = []
    for number, stake in enumerate((0.01, 0.02)):
        for name in ("net", "mlp"):
            worth = stake if name == "net" else 0.001
            none = pair("none", number, thief__soft=0.5 + worth)
            none["ways"] |= {"bar/alone": [0.5, 0.5], "bar/label smoothing": [0.45, 0.45]}
            ours = pair("decoy", number, bar__top=0.4, thief__soft=0.51, partner__soft=0.49 + worth)
            pieces += [none | {"student": name}, ours | {"student": name}]
    for row, accuracy, error in (("none", 0.9, 0.01), ("decoy", 0.894, 0.03)):
        fact = {"kind": "facts", "row": row, "seed": 0, "student": ""}
        pieces.append(fact | {"keyless": {"accuracy": accuracy, "calibration_error": error}})

    def shown():
        return [line.split(" | ", 1)[1] for line in modules[2].asked_of_ours(pieces, ("net", "mlp"))[3:]]

    assert shown() == [
        "+1.50, **missed** | +0.10, **missed** |",
        "+1.00, **missed** | +1.00, **missed** |",
        "-1.00, **missed** | -1.00, **missed** |",
        "-0.60, **missed** | -0.60, **missed** |",
        "+2.00, **missed** | +2.00, **missed** |",
    ]
    better = [each for each in pieces if each["kind"] == "pair"]
    for each in better:
        ways = each["ways"]
        ways |= {"thief/soft": [0.55, 0.55]} if (each["row"], each["student"]) == ("none", "net") else {}
        ways |= {"thief/soft": [0.505, 0.505], "partner/soft": [0.545, 0.545]} if each["row"] == "decoy" else {}
    pieces[-1]["keyless"] = {"accuracy": 0.895, "calibration_error": 0.02}
    assert shown() == [
        "+5.00, yes | +0.10, no |",
        "+0.50, yes | +0.50, yes |",
        "-0.50, yes | +4.40, yes |",
        "-0.50, yes | -0.50, yes |",
        "+1.00, yes | +1.00, yes |",
    ]
    assert modules[2].asked_of_ours(pieces[:2], ("net", "mlp")) == []


def test_times_are_of_what_users_wait_for(modules):
    machine = {"machine": {"platform": "Linux", "precision": "bfloat16"}}
    pieces = [
        {"kind": "teacher", "row": "", "seconds": 1200.0},
        {"kind": "defence", "row": "none", "seconds": 0.1},
        {"kind": "defence", "row": "decoy", "seconds": 70.0},
        {"kind": "defence", "row": "decoy", "seconds": 90.0},
        {"kind": "pair", "row": "decoy", "seconds": 40.0, "ways": {"a": 0, "b": 0, "c": 0, "d": 0}},
    ]
    said = modules[2].times([each | machine for each in pieces], {"none": "unprotected", "decoy": "our box"})
    expected = "a teacher 20 min, our box 80 s, a way to steal 10 s (Linux, cpu, bfloat16)."
    assert said == f"One process took for {expected}"
    assert not modules[2].times([], {})


def test_the_mark_of_labels_is_shown_with_its_cost(modules):
    pieces = [
        {"kind": "mark", "row": "decoy", "seed": seed, "cost": 0.001 * seed, "log10_p": -20.0 + seed}
        for seed in (0, 2)
    ]
    assert modules[2].marked(pieces, "decoy") == ["0.10 ± 0.14", "-18.0 at most"]
    assert modules[2].marked(pieces, "none") == ["–", "–"]
    few = {"kind": "mark", "row": "decoy", "seed": 1}
    assert modules[2].marked([*pieces, few], "decoy")[0] == "0.10 ± 0.14 (too few in 1 of 3 seeds)"


def test_a_damaged_results_file_is_one_line(call, monkeypatch, capsys):
    run, place = call
    for content in ("[]", "{", '{"case": 1, "pieces": 3}'):
        (place / "out.json").write_text(content)
        assert run("--plan", monkeypatch=monkeypatch) == 2
        assert "out.json: no results file of the evidence table" in capsys.readouterr().err
    (place / "out.json").unlink()


def test_other_data_are_refused(modules):
    from sdb.errors import DataError

    _, cases, _ = modules
    with pytest.raises(DataError, match="499 training and 500 test images, 498 and 501"):
        cases.checked(replace(cases.TINY, images=(1295, 501)), None, 0)
    with pytest.raises(DataError, match="published are"):
        cases.checked(replace(cases.TINY, images=(1297, 500), means=(0.9,)), None, 0)
    data = cases.checked(cases.TINY, None, 0)
    mean = float(np.concatenate([data.train.images, data.validation.images]).mean() / 255)
    assert cases.checked(replace(cases.TINY, means=(mean,)), None, 0).num_classes == 10


def test_what_missing_pieces_will_take_follows_from_those_that_are_done(modules):
    evidence = modules[0]
    pieces = [evidence.Piece("teacher", 0), *(evidence.Piece("pair", 0, "none", "net", each) for each in range(3))]
    assert evidence.costs_of(pieces, {}, pieces) == dict(zip([p.name for p in pieces], [8, 1, 1, 1], strict=True))
    done = {pieces[0].name: {"seconds": 80.0}}
    assert list(evidence.costs_of(pieces[1:], done, pieces).values()) == [10, 10, 10]
    done[pieces[1].name] = {"seconds": 30.0}
    assert list(evidence.costs_of(pieces[2:], done, pieces).values()) == [30, 30]


def test_a_small_copy_is_the_data_set_in_jpeg(tmp_path):
    pytest.importorskip("pyarrow")
    from PIL import Image

    from sdb.data import parquet
    from sdb.data.pictures import JPEG_START

    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "ant"):
            (tmp_path / "from" / part / name).mkdir(parents=True)
            for number in range(count):
                shade = np.full((32, 32, 3), 200 if name == "ant" else 20, np.uint8)
                shade += rng.integers(0, 4, shade.shape, dtype=np.uint8)
                Image.fromarray(shade).save(tmp_path / "from" / part / name / f"{number}.png")
    command = [sys.executable, str(BENCHMARKS / "jpeg_copy.py"), "--from", str(tmp_path / "from")]
    made = subprocess.run([*command, "--to", str(tmp_path / "to")], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (file,) = (tmp_path / "to").glob("train-*.parquet")
    assert parquet.first_image(file, "img").startswith(JPEG_START)
    decoding = parquet.part([file], "img", "label", 3, 2).decode()
    images, labels = (np.concatenate(each) for each in zip(*decoding.chunks, strict=True))
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert [int(image.mean() > 100) for image in images] == [1 - label for label in labels]
    lost = subprocess.run(
        [*command[:-1], str(tmp_path), "--to", str(tmp_path / "to")], capture_output=True, check=False
    )
    assert lost.returncode == 2
    assert b"no such folder" in lost.stderr
