"""`sdb audit` as its user has it: folders, flags, exit codes, one line for what can be mended."""

import itertools
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

TINY = [
    *("--set", "subset_percent=0.3", "--set", "epochs=4", "--set", "maker_epochs=4", "--set", "views=2"),
    *("--set", 'model_args={"num_channels": 6}', "--set", 'student_args={"num_channels": 4}'),
    *("--attack", "labels", "--attack", "distil", "--defence", "stingy", "--workers", "1"),
    *("--labelled", "all", "--set", "pairs=3"),
]


@pytest.fixture(scope="module")
def boxed(quick_sdb, tmp_path_factory):
    """A folder with a teacher and a decoy box around it."""
    folder = tmp_path_factory.mktemp("boxed")
    common = {"model_name": "net", "num_channels": 6, "dataset": "digits", "epochs": 4, "learning_rate": 0.003}
    for name, params in (("teacher", common), ("wrapped", common | {"teacher": "teacher", "allowed_loss": 1})):
        (folder / name).mkdir()
        (folder / name / "params.json").write_text(json.dumps(params))
    assert quick_sdb("train", "teacher", cwd=folder).returncode == 0
    assert quick_sdb("wrap", "wrapped", cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def audited(quick_sdb, boxed):
    """The same folder, with an audit of the box in it."""
    done = quick_sdb("audit", "wrapped", "--out", "audit", *TINY, cwd=boxed)
    assert done.returncode in (0, 1), done.stderr
    return boxed, done


def test_an_audit_writes_a_claim_and_a_report_and_says_its_verdict(audited):
    folder, done = audited
    claim = json.loads((folder / "audit" / "claim.json").read_text())
    assert [each["name"] for each in claim["defences"]] == ["box", "none", "stingy"]
    assert claim["box"]["method"] == "decoy"
    assert claim["defences"][0]["partner"][0] is not None
    assert {each["label"] for each in claim["unlock"]} >= {"no key", "the key"}
    assert len(claim["traces"]) == 5
    report = (folder / "audit" / "report.html").read_text()
    assert report.startswith("<!doctype html>")
    assert "report.html" in done.stderr
    assert done.stdout == ""
    # One judgement: exit code, text and page.
    verdict = re.search(f"^({'|'.join(LEADS)}): ", done.stderr, re.MULTILINE)[1]
    assert done.returncode == (0 if verdict == "Established" else 1)
    assert claim["pairs"]["number"] == 3
    assert {"bar/alone", "attack/labels", "top1/labels"} <= claim["pairs"]["ways"].keys()
    assert f'<span class="summary">{verdict}: ' in report


DONE = {
    "status": "done",
    "reason": "",
    "validation": 0.9,
    "agreement": 0.9,
    "queries": 100,
    "gap_closed": None,
    "details": {},
}
HONEST = {"honesty": {"calibration_error": 0.01, "brier": 0.01, "confidence": 0.97}}
GOOD = {
    "teacher": 0.98,
    "bar": {"label smoothing": 0.94, "alone": 0.93},
    "from_teacher": 0.96,
    "own_distance": 0.05,
    **HONEST,
}
LEADS = ("Established", "Broken", "Not settled", "Nothing at stake here")


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ({}, 0, "Established: the box holds behind an API"),
        ({"keyless": 0.966}, 1, "Not settled: this audit cannot say whether the box keeps its promises"),
        ({"thief": 0.96}, 1, "Broken: the box does not keep its promises behind an API"),
        ({"bare": 0.94}, 1, "Nothing at stake here: no attack could show what the box keeps back behind an API"),
        ({"honesty": {"calibration_error": 0.4, "brier": 0.2}}, 1, "Broken: the box does not keep its promises"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_exit_code_is_the_verdict(quick_sdb, boxed, tmp_path, monkeypatch, found, code, said):
    """All results are there already, so that resuming only puts them together; 0 is for what is established."""
    from sdb.audit.cells import Task
    from sdb.audit.job import find_subject
    from sdb.audit.plan import AuditSettings
    from sdb.audit.runner import plan, take
    from sdb.config import parse_overrides

    monkeypatch.chdir(boxed)
    sets = parse_overrides([value for flag, value in itertools.pairwise(TINY) if flag == "--set"])
    chosen = {"seeds": 3, "labelled": "all", "attacks": ("labels", "distil"), "defences": ("stingy",)}
    subject, settings = find_subject(Path("wrapped"), None, None, None, False, AuditSettings(**sets | chosen))
    settings = settings.filled()
    archive = take(tmp_path / "made", settings, subject, resume=False, overwrite=False)
    for task in (task for stage in plan(settings, subject) for task in stage):
        results = {
            "reference": GOOD,
            "defence": {"keyless": 0.978, "keyed": 0.98, "partner": 0.96, "distance": 3.0, "bits": 0.2}
            | HONEST
            | found,
            "cell": {"accuracy": {"none": 0.96}.get(task.defence, 0.9)} | DONE,
            "negative": {"accuracy": 0.1} | DONE,
        }
        result = results[task.kind] | {"seconds": 1.0}
        archive.keep(task.place, result)
    ways = {
        "bar/label smoothing": 0.94,
        "bar/alone": 0.93,
        "bare/T=4": found.get("bare", 0.96),
        "partner/T=4": found.get("bare", 0.96),
        "attack/labels": found.get("thief", 0.935),
    }
    for pair in range(1, 4):
        # Some luck, the same for all ways.
        scores = {name: [value + 0.002 * pair, 0.9 + value / 100] for name, value in ways.items()}
        archive.keep(Task("pair", 0, pair=pair).place, {"ways": scores, "seconds": 1.0})
    out = str(tmp_path / "made")
    done = quick_sdb("audit", "wrapped", "--out", out, "--seeds", "3", *TINY, "--resume", cwd=boxed)
    assert done.returncode == code, done.stderr
    verdict = re.search(f"^({'|'.join(LEADS)}): .*", done.stderr, re.MULTILINE)[0]
    assert verdict.startswith(said)
    assert "smallest gain that could have been seen: " in verdict
    page = (tmp_path / "made" / "report.html").read_text()
    assert f'<span class="summary">{said}' in page


def test_the_key_is_nowhere_in_what_an_audit_writes(audited):
    folder, done = audited
    secret = json.loads((folder / "wrapped" / "key.json").read_text())["secret"]
    for path in (folder / "audit").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in done.stderr


def test_a_second_audit_in_one_place_is_refused_and_resuming_does_nothing_twice(quick_sdb, audited):
    folder, _ = audited
    again = quick_sdb("audit", "wrapped", "--out", "audit", *TINY, cwd=folder)
    assert again.returncode == 2
    assert "already holds an audit" in again.stderr
    before = json.loads((folder / "audit" / "claim.json").read_text())
    resumed = quick_sdb("audit", "wrapped", "--out", "audit", *TINY, "--resume", cwd=folder)
    assert resumed.returncode in (0, 1)
    after = json.loads((folder / "audit" / "claim.json").read_text())
    assert after["cells"] == before["cells"]
    other = quick_sdb("audit", "wrapped", "--out", "audit", *TINY, "--resume", "--seeds", "2", cwd=folder)
    assert other.returncode == 2
    assert "seeds was 1, now 2" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "labells"], "did you mean 'labels'"),
        (["--defence", "nastie"], "did you mean 'nasty'"),
        (["--query-budget", "0"], "query_budget"),
        (["--set", "epochs=0"], "epochs"),
        (["--preset", "huge"], "preset"),
        (["--threat", "martians"], "threat"),
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--resume"], "nothing to resume"),
        (["--resume", "--overwrite"], "contradict each other"),
        (["--key", "nothing.json"], "nothing.json"),
        (["--dataset", "martian"], "martian"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(quick_sdb, boxed, arguments, said):
    done = quick_sdb("audit", "wrapped", "--out", "bad", *TINY, *arguments, cwd=boxed)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (boxed / "bad" / "claim.json").exists()
    assert not (boxed / "bad" / "work").exists()


def test_a_box_without_its_key_says_what_to_give(quick_sdb, boxed, tmp_path):
    (tmp_path / "alone").symlink_to(boxed / "wrapped" / "box")
    done = quick_sdb("audit", "alone", "--dataset", "digits", *TINY, cwd=tmp_path)
    assert done.returncode == 2
    assert "give --key FILE, or --without-key" in done.stderr
    done = quick_sdb("audit", "alone", "--without-key", "--dataset", "digits", *TINY, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    claim = json.loads((tmp_path / "runs" / "audit" / "claim.json").read_text())
    assert claim["defences"][0]["partner"] == [None]


def test_the_wrong_key_is_refused_before_anything_is_done(quick_sdb, boxed):
    assert quick_sdb("key", "new", "other.json", cwd=boxed).returncode == 0
    done = quick_sdb("audit", "wrapped", "--key", "other.json", "--out", "other", *TINY, cwd=boxed)
    assert done.returncode == 2
    assert "is of another box" in done.stderr


def test_a_box_of_other_images_is_refused(quick_sdb, boxed, tmp_path):
    import numpy as np
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "pictures" / part / label).mkdir(parents=True)
            for number in range(8):
                pixels = np.full((8, 8), 20 * number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / part / label / f"{number}.png")
    more = ["--dataset", "folder", "--data-root", str(tmp_path / "pictures")]
    done = quick_sdb("audit", "wrapped", "--out", "classes", *more, *TINY, cwd=boxed)
    assert done.returncode == 2
    assert "10 classes, the data has 2" in done.stderr


def status_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def children_of(pid):
    everyone = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [each for each in everyone if (found := status_of(each)) and int(found[1]) == pid]


def is_alive(pid):
    found = status_of(pid)
    return found is not None and found[0] != "Z"


def test_a_killed_audit_goes_on_and_ends_the_same(sdb_command, quick_sdb, audited):
    folder, _ = audited
    start, environment = sdb_command
    arguments = [*start, "audit", "wrapped", "--out", "killed", *TINY, "--workers", "2"]
    with subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list((folder / "killed").rglob("cells/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        busy = quick_sdb("audit", "wrapped", "--out", "killed", *TINY, "--resume", cwd=folder)
        workers = children_of(process.pid)
        process.kill()
    assert workers
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in workers), "workers outlived the audit that they worked for"
    assert busy.returncode == 2
    assert "another process is writing here" in busy.stderr
    assert not (folder / "killed" / "claim.json").exists()
    done = quick_sdb("audit", "wrapped", "--out", "killed", *TINY, "--resume", cwd=folder)
    assert done.returncode in (0, 1), done.stderr

    def cells(place):
        kept = json.loads((folder / place / "claim.json").read_text())["cells"]
        for each in kept:
            for trial in each["seeds"]:
                trial.pop("seconds")
        return kept

    assert cells("killed") == cells("audit")
