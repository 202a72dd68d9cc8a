"""sdb audit-marks by the real command: a table and files, what is finished is kept, and wrong words are refused."""

import json

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb):
    """A teacher of digits that learned from few images for a short time, so that it is often unsure."""
    place = tmp_path_factory.mktemp("marks")
    (place / "teacher").mkdir()
    params = {"model_name": "net", "num_channels": 4, "dataset": "digits", "learning_rate": 0.01, "epochs": 14}
    (place / "teacher" / "params.json").write_text(
        json.dumps(params | {"subset_percent": 0.3, "validation_fraction": 0.4})
    )
    done = quick_sdb("train", "teacher", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


STUDY = ("--out", "marks", "--pool", "left_out", "--budget", "0.05", "--queries", "300", "--workers", "1")
STUDY += ("-s", "student_model=mlp", "-s", "student_args={}", "-s", "epochs=25")


def test_a_study_and_a_thief_more(place, quick_sdb):
    done = quick_sdb("audit-marks", "teacher", *STUDY, "--thief", "labels", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads((place / "marks" / "marks.json").read_text())
    assert found["kind"] == "marks"
    assert found["queries"] == 300
    assert found["sentence"] in done.stderr
    assert found["sentence"].startswith("Of 1 thief of 300 labels")
    assert "thief" in done.stdout
    assert "labels" in done.stdout
    assert (place / "marks" / "marks.md").read_text() == found["markdown"]
    # A fresh owner's secret is readable by nobody else, and not in the result.
    secret = place / "marks" / "study-owner.json"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert json.loads(secret.read_text())["secret"] not in json.dumps(found)
    refused = quick_sdb("audit-marks", "teacher", *STUDY, cwd=place)
    assert refused.returncode == 2
    assert "already holds a study of the mark: add --resume" in refused.stderr
    both = ("--thief", "labels", "--thief", "weights of 4 bits", "--resume")
    more = quick_sdb("audit-marks", "teacher", *STUDY, *both, cwd=place)
    assert more.returncode == 0, more.stderr
    again = json.loads((place / "marks" / "marks.json").read_text())
    assert list(again["seeds"]["0"]["thieves"]) == ["labels", "weights of 4 bits"]
    assert again["seeds"]["0"]["thieves"]["labels"] == found["seeds"]["0"]["thieves"]["labels"]
    other = quick_sdb("audit-marks", "teacher", *STUDY, "--resume", "--queries", "301", cwd=place)
    assert other.returncode == 2
    assert "queries was 300, now 301" in other.stderr
    # A call for fewer thieves loses none that is done.
    fewer = quick_sdb("audit-marks", "teacher", *STUDY, "--thief", "labels", "--resume", cwd=place)
    assert fewer.returncode == 0, fewer.stderr
    assert json.loads((place / "marks" / "marks.json").read_text())["seeds"] == again["seeds"]


def test_a_call_that_asks_for_too_much_keeps_nothing(place, quick_sdb):
    for _ in range(2):
        done = quick_sdb("audit-marks", "teacher", "--out", "much", "--queries", "100000", cwd=place)
        assert done.returncode == 2
        assert "queries: 100000; there are" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--thief", "lables"), "no thief is called 'lables' (did you mean 'labels'?); there are: labels; "),
        (("--all", "--thief", "labels"), "--all and --thief contradict each other"),
        (("--pool", "train"), "pool"),
    ],
)
def test_wrong_words_are_refused(place, quick_sdb, words, said):
    done = quick_sdb("audit-marks", "teacher", "--out", "other", *words, cwd=place)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (place / "other").exists()
