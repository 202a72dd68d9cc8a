"""`sdb trace` as an owner has it: a process, its exit code, JSON on stdout and one sentence on stderr."""

from __future__ import annotations

import json
import stat

import pytest

FIT = {"subset_percent": 0.3, "learning_rate": 0.01, "batch_size": 32, "augment": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, write_params):
    """An owner's teacher, its decoy box and a thief; a second owner; the paper's box."""
    place = tmp_path_factory.mktemp("trace")

    def run(*args):
        done = quick_sdb(*args, cwd=place)
        assert done.returncode == 0, done.stderr

    for name in ("owner", "other"):
        run("key", "owner", "new", f"{name}.json")
    write_params(place / "teacher", epochs=10, **FIT)
    box = {"teacher": "teacher", "method": "decoy", "owner": "owner.json", "partners": ["a"], "allowed_loss": 1}
    write_params(place / "box", epochs=20, **box, **FIT)
    write_params(place / "thief", teacher="box", epochs=10, kd_temperature=4, kd_weight=0.9, **FIT)
    write_params(place / "paper", teacher="teacher", method="sdb", epochs=1, allowed_loss=1, **FIT)
    run("train", "teacher")
    run("wrap", "box")
    run("distill", "thief")
    run("wrap", "paper")
    run("key", "partner", "a", "--owner", "owner.json")
    return place


@pytest.fixture(scope="module")
def trace(place, quick_sdb):
    """A function that traces a suspect for the owner."""

    def run(suspect, *args, box="box", owner="owner.json"):
        asked = args if "--json" in args else (*args, "--json", "-")
        return quick_sdb("trace", suspect, "--box", box, "--owner", owner, *asked, cwd=place)

    return run


def parsed(done):
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    return json.loads(done.stdout)


class TestVerdicts:
    def test_a_thief_carries_the_mark(self, place, sdb):
        done = sdb("trace", "thief", "--box", "box/box", "--owner", "owner.json", "--json", "out.json", cwd=place)
        assert done.returncode == 0, done.stderr
        result = json.loads((place / "out.json").read_text())
        assert result["marked"]
        assert result["log10_p"] < -6
        assert result["images"] == 500
        assert done.stderr.startswith("The suspect carries this owner's mark")
        assert f"decoys       {result['found']} of {result['total']} stand first" in done.stdout
        assert len(done.stdout.splitlines()) == 4

    def test_so_does_the_box(self, trace):
        assert parsed(trace("box"))["found"] >= 18

    def test_the_teacher_does_not_and_exits_with_0_too(self, trace):
        done = trace("teacher/last.safetensors")
        assert not parsed(done)["marked"]
        assert "does not show innocence: a label-only copy carries none" in done.stderr

    def test_with_the_teacher_as_reference(self, trace):
        assert parsed(trace("box", "--reference", "teacher"))["marked"]
        assert parsed(trace("teacher", "--reference", "teacher"))["p_value"] == 1.0

    def test_data_can_be_named(self, trace):
        assert parsed(trace("thief", "--dataset", "digits"))["marked"]


class TestSecrecy:
    def test_decoys_are_printed_for_the_owner_s_eyes_only(self, place, trace):
        hidden = trace("thief", "--json", "hidden.json")
        rows = json.loads((place / "hidden.json").read_text())["table"]
        assert {name for row in rows for name in row} == {"label", "name", "images", "candidates", "decoys"}
        told = trace("thief", "--reveal", "--json", "shown.json")
        shown = json.loads((place / "shown.json").read_text())["table"]
        assert told.stdout.count("ranks (") == len(shown)
        assert all(len(row["chosen"]) == len(row["ranks"]) == 2 for row in shown)
        assert "chosen" not in (place / "hidden.json").read_text()
        assert "ranks" not in hidden.stdout + hidden.stderr
        assert stat.S_IMODE((place / "shown.json").stat().st_mode) == 0o600


class TestRefusals:
    def refused(self, done, *words):
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("sdb: ")
        assert len(done.stderr.splitlines()) == 1
        for word in words:
            assert word in done.stderr

    def test_another_owner(self, trace):
        self.refused(trace("thief", owner="other.json"), "does not own this box")

    def test_a_partner_s_key_for_an_owner(self, trace):
        self.refused(trace("thief", owner="a.key.json"), "partner's key")

    def test_a_box_without_a_record(self, trace):
        self.refused(trace("thief", box="paper"), "does not own this box")

    def test_the_owner_s_own_box_without_a_record(self, trace, place, quick_sdb):
        from sdb.box.box import Box
        from sdb.keys import Key, Owner

        Owner.of(Key.load(place / "paper" / "key.json")).save(place / "paper.owner.json")
        assert Box.load(place / "paper" / "box").record is None
        self.refused(trace("thief", box="paper", owner="paper.owner.json"), "method 'sdb' leaves no mark")

    def test_no_box(self, trace):
        self.refused(trace("box", box="teacher"), "teacher is not a box")

    def test_no_suspect(self, trace):
        self.refused(trace("nothing"), "nothing")

    def test_a_box_as_reference(self, trace):
        self.refused(trace("thief", "--reference", "box"), "is a box; name the teacher")

    def test_another_class_count(self, place, trace):
        import torch

        from sdb.box.box import Box, BoxInfo
        from sdb.models import ModelSpec

        three = ModelSpec("net", {"num_channels": 4}, 3, (1, 8, 8), (0.5,), (0.5,)).build()
        Box(three, BoxInfo("nasty", {}, ("a", "b", "c"))).save(place / "three", overwrite=True)
        assert three(torch.rand(1, 1, 8, 8)).shape == (1, 3)
        self.refused(trace("three"), "3 classes", "10")

    def test_a_box_that_does_not_say_its_data(self, place, trace, tmp_path):
        import shutil

        shutil.copytree(place / "box" / "box", tmp_path / "alone")
        self.refused(trace("thief", box=tmp_path / "alone"), "add --dataset")
        assert parsed(trace("thief", "--dataset", "digits", box=tmp_path / "alone"))["marked"]
