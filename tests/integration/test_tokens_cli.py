"""sdb token, through the real command line."""

import json
import stat

import pytest

from sdb.service.watch import Limits, Profile, TokenFile, Watch
from sdb.service.watch.detector import Detector

KEY_ID = "0123456789abcdef" * 2


def test_a_token_is_made_listed_used_and_revoked(quick_sdb, tmp_path):
    made = quick_sdb("token", "new", "anna", "--tokens", "tokens.db", "--answers", "labels", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    token = json.loads(made.stdout)["token"]
    assert token not in made.stderr
    assert stat.S_IMODE((tmp_path / "tokens.db").stat().st_mode) == 0o600
    options = ("--partner", KEY_ID, "--images-day", 50, "--no-limits", "--expires", "90d")
    assert quick_sdb("token", "new", "hospital", "--tokens", "tokens.db", *options, cwd=tmp_path).returncode == 0

    watch = Watch.open(None, tmp_path / "tokens.db")
    assert watch.identify(token).name == "anna" and watch.identify(token).answers == "labels"
    watch.close()
    rows = TokenFile(tmp_path / "tokens.db").rows()
    assert rows[0].limits is None and rows[1].limits == Limits(images_day=50)
    assert rows[0].expires is None and rows[1].expires - rows[1].created == pytest.approx(90 * 86_400)

    assert quick_sdb("token", "revoke", "anna", "--tokens", "tokens.db", cwd=tmp_path).returncode == 0
    listed = json.loads(quick_sdb("token", "list", "--tokens", "tokens.db", cwd=tmp_path).stdout)
    assert [(row["name"], row["revoked"] is None) for row in listed] == [("anna", False), ("hospital", True)]
    assert [row["expires"] is None for row in listed] == [True, False]
    assert listed[1]["partner"] == KEY_ID and token not in json.dumps(listed)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("new", "anonymous"), "anonymous"),
        (("new", "a", "--answers", "all"), "probabilities"),
        (("new", "a", "--partner", "me"), "sdb key show"),
        (("new", "a", "--rate", "-1"), "rate"),
        (("new", "a", "--expires", "soon"), "such as 12h"),
        (("revoke", "nobody"), "token list"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(quick_sdb, tmp_path, arguments, word):
    quick_sdb("token", "new", "anna", "--tokens", "tokens.db", cwd=tmp_path)
    refused = quick_sdb("token", *arguments, "--tokens", "tokens.db", cwd=tmp_path)
    assert refused.returncode == 2 and word in refused.stderr and "Traceback" not in refused.stderr
    assert len(TokenFile(tmp_path / "tokens.db").rows()) == 1


def test_missing_files_are_said_and_not_made(quick_sdb, tmp_path):
    for arguments in (
        ("list", "--tokens", "none.db"),
        ("revoke", "a", "--tokens", "none.db"),
        ("alerts", "none.db"),
    ):
        refused = quick_sdb("token", *arguments, cwd=tmp_path)
        assert refused.returncode == 2 and "none.db" in refused.stderr and "Traceback" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_alerts_are_printed(quick_sdb, tmp_path):
    watch = Watch.open(tmp_path / "watch.db", alerts=tmp_path / "alerts.jsonl")
    while watch.admit(watch.identify(None), 64).allowed:
        pass
    watch._accounts._queue_alert(
        "anonymous", "volume_day", watch._accounts._meter("anonymous", 0), Limits(images_day=1), 0.8
    )
    watch.close()
    printed = json.loads(quick_sdb("token", "alerts", "watch.db", cwd=tmp_path).stdout)
    assert [(alert["principal"], alert["kind"]) for alert in printed] == [("anonymous", "volume_day")]


def test_a_profile_is_made_of_a_box_and_used(quick_sdb, write_params, tmp_path):
    write_params(tmp_path / "teacher")
    assert quick_sdb("train", "teacher", cwd=tmp_path).returncode == 0
    write_params(tmp_path / "box", teacher="teacher", epochs=1, allowed_loss=1)
    assert quick_sdb("wrap", "box", cwd=tmp_path).returncode == 0
    made = quick_sdb("token", "profile", "box", "--out", "profile.json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    profile = Profile.load(tmp_path / "profile.json")
    assert "thresholds" in made.stderr and profile.coverage_images == 1_167
    assert set(Detector(profile).thresholds) == {
        "input",
        "distances",
        "coverage",
        "near_duplicates",
        "offset",
    }
    watch = Watch.open(None, profile=tmp_path / "profile.json", alerts=tmp_path / "alerts.jsonl")
    watch.close()
