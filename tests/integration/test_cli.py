"""The command line end to end on digits: train, wrap, distil, evaluate, from params.json."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest
import torch

from sdb.box.box import Box
from sdb.keys import Key

RUN_FILES = {
    "training.log",
    "metrics.jsonl",
    "params.json",
    "params.resolved.json",
    "environment.json",
    "last.safetensors",
    "best.safetensors",
    "result.json",
}
COMMANDS = ["train", "wrap", "distill", "evaluate", "check", "demo", "key new", "key show"]


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, sdb, quick_sdb, write_params):
    """A teacher, its box, a thief, a partner and a stranger, each made by its command; what each printed."""
    place = tmp_path_factory.mktemp("chain")
    write_params(place / "teacher", epochs=12, learning_rate=0.01)
    paper = {"method": "sdb", "key_blend": 0.5, "disturbance_weight": 0.1, "allowed_loss": 1}
    write_params(place / "box", teacher="teacher", **paper)
    for name in ("thief", "partner", "stranger"):
        write_params(place / name, teacher="box", kd_temperature=4)
    asked = {path: path.read_bytes() for path in place.glob("*/params.json")}
    done = {
        "teacher": sdb("train", "teacher", cwd=place),
        "box": quick_sdb("wrap", "--save_path", "box", cwd=place),
        "thief": quick_sdb("distill", "--save-path", "thief", cwd=place),
        "partner": sdb("distill", "partner", "--key", "box/key.json", "-s", "epochs=3", cwd=place),
        "key": quick_sdb("key", "new", "stranger.json", "--kind", "image", "--blend", "0.5", cwd=place),
        "stranger": quick_sdb(
            "distill",
            "stranger",
            "--key=stranger.json",
            "--set",
            "foreign_key=true",
            "--set",
            "loss=dkd",
            cwd=place,
        ),
    }
    for name, process in done.items():
        assert process.returncode == 0, (name, process.stderr)
    assert asked == {path: path.read_bytes() for path in place.glob("*/params.json")}, "params.json was written to"
    return place, done


class TestWithoutTorch:
    def test_help_imports_neither_torch_nor_numpy(self):
        code = (
            "import sys\nfrom sdb.cli import main\nsys.argv = ['sdb', *sys.argv[1:]]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'tensorboard'} & sys.modules.keys()\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        for args in (["--help"], ["train", "--help"], ["key", "--help"]):
            done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "Usage: sdb" in done.stdout

    def test_help_of_every_command(self, quick_sdb, tmp_path):
        top = quick_sdb("--help", cwd=tmp_path).stdout
        for name in COMMANDS:
            assert name.split()[0] in top
            done = quick_sdb(*name.split(), "--help", cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert "Usage:" in done.stdout

    def test_usage_errors(self, quick_sdb, tmp_path):
        for args in (["train", "--bogus"], ["bogus"], ["evaluate"], ["demo", "--seed", "-1"], ["key", "new"], []):
            done = quick_sdb(*args, cwd=tmp_path)
            assert done.returncode == 2, args
            assert "Traceback" not in done.stderr
            assert "sdb" in done.stderr


class TestKeys:
    def test_new_and_show(self, quick_sdb, tmp_path):
        made = quick_sdb("key", "new", "k.json", "--kind", "image", "--blend", "0.7", cwd=tmp_path)
        assert (made.returncode, made.stdout) == (0, "")
        path = tmp_path / "k.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        body = json.loads(path.read_text())
        shown = quick_sdb("key", "show", "k.json", cwd=tmp_path)
        public = json.loads(shown.stdout)
        assert (shown.returncode, public["kind"], public["blend"]) == (0, "image", 0.7)
        assert public["id"] == body["id"]
        for text in (made.stderr, shown.stdout, shown.stderr):
            assert body["secret"] not in text

        again = quick_sdb("key", "new", "k.json", cwd=tmp_path)
        assert again.returncode == 2
        assert "k.json exists" in again.stderr
        assert json.loads(path.read_text()) == body

    def test_two_keys_differ(self, quick_sdb, tmp_path):
        for name in ("a", "b"):
            assert quick_sdb("key", "new", name, cwd=tmp_path).returncode == 0
        a, b = (json.loads((tmp_path / name).read_text()) for name in ("a", "b"))
        assert a["secret"] != b["secret"]
        assert a["id"] != b["id"]


class TestChain:
    @pytest.mark.parametrize("name", ["teacher", "box", "thief", "partner", "stranger"])
    def test_data_on_stdout_talk_on_stderr(self, chain, name):
        place, done = chain
        assert json.loads(done[name].stdout) == json.loads((place / name / "result.json").read_text())
        assert f"{name}: epoch " in done[name].stderr
        assert all(" %" in line for line in done[name].stderr.splitlines())

    @pytest.mark.parametrize(("name", "epochs"), [("teacher", 12), ("box", 2), ("thief", 2), ("partner", 3)])
    def test_what_a_run_leaves(self, chain, name, epochs):
        folder = chain[0] / name
        names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
        assert names == RUN_FILES | {".lock"} | ({"box", "key.json"} if name == "box" else set())
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        assert [record["epoch"] for record in records(folder)] == list(range(1, epochs + 1))
        assert (folder / "training.log").read_text().count("epoch ") >= epochs
        assert json.loads((folder / "environment.json").read_text())["device"] == "cpu"

    def test_resolved_parameters_have_our_names_and_every_default(self, chain):
        resolved = json.loads((chain[0] / "partner" / "params.resolved.json").read_text())
        assert resolved["model_args"] == {"num_channels": 4}
        assert resolved["epochs"] == 3
        assert resolved["key"] == "box/key.json"
        assert {"seed", "schedule", "optimizer", "validation_fraction"} <= resolved.keys()

    def test_the_box(self, chain):
        box = chain[0] / "box"
        assert {path.name for path in (box / "box").iterdir()} == {"box.json", "weights.safetensors"}
        assert stat.S_IMODE((box / "key.json").stat().st_mode) == 0o600
        manifest = json.loads((box / "box" / "box.json").read_text())
        assert json.loads((box / "key.json").read_text())["id"] in json.dumps(manifest)

    def test_the_secret_is_in_the_key_file_alone(self, chain):
        place, done = chain
        for key_file in (place / "box" / "key.json", place / "stranger.json"):
            secret = json.loads(key_file.read_text())["secret"]
            needles = secret.encode(), bytes.fromhex(secret)
            for path in place.rglob("*"):
                if path.is_file() and path != key_file:
                    content = path.read_bytes()
                    assert not any(needle in content for needle in needles), path
            for process in done.values():
                assert secret not in process.stdout + process.stderr

    def test_a_teacher_learns_and_its_box_keeps_it(self, chain):
        """Tiny settings: far from the accuracies of the demo, far above chance."""
        place, _ = chain
        assert json.loads((place / "teacher" / "result.json").read_text())["accuracy"] > 0.4
        assert json.loads((place / "box" / "result.json").read_text())["keyless"] > 0.3

    def test_a_wrong_key_is_not_the_right_one(self, chain):
        place, _ = chain
        partner, box = (json.loads((place / name / "result.json").read_text()) for name in ("partner", "box"))
        assert partner["teacher"] == box["keyed"]
        # Two accuracies may agree by luck; answers do not.
        opened, images = Box.load(place / "box" / "box"), torch.rand(50, 1, 8, 8)
        keys = [Key.load(place / name) for name in ("box/key.json", "stranger.json")]
        assert not torch.allclose(opened.unlock(keys[0])(images), opened.attempt(keys[1])(images), atol=1e-3)


class TestEvaluate:
    def test_equals_the_result_of_the_run(self, chain, sdb, quick_sdb):
        place, _ = chain
        box = json.loads((place / "box" / "result.json").read_text())
        teacher = json.loads((place / "teacher" / "result.json").read_text())
        done = sdb("evaluate", "box", "--key", "box/key.json", cwd=place)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert (found["keyless"], found["keyed"]) == (box["keyless"], box["keyed"])
        assert found["calibration"].keys() == {"keyless", "keyed"}
        assert all(0 <= value <= 1 for scores in found["calibration"].values() for value in scores.values())
        assert "levels" not in found  # the paper's box has none
        for path, expected in (
            ("box", {"keyless": box["keyless"]}),
            ("box/box", {"keyless": box["keyless"]}),
            ("box/last.safetensors", {"keyless": box["keyless"]}),
            ("teacher", {"accuracy": teacher["accuracy"]}),
            ("teacher/last.safetensors", {"accuracy": teacher["accuracy"]}),
        ):
            done = quick_sdb("evaluate", path, cwd=place)
            assert (done.returncode, {**json.loads(done.stdout), **expected}) == (0, json.loads(done.stdout)), path

    def test_best_checkpoint(self, chain, quick_sdb):
        done = quick_sdb("evaluate", "teacher/best.safetensors", cwd=chain[0])
        assert 0 < json.loads(done.stdout)["accuracy"] <= 1

    def test_a_box_away_from_its_run(self, chain, quick_sdb, tmp_path):
        place, _ = chain
        (place / "box" / "box").rename(tmp_path / "shipped")
        try:
            silent = quick_sdb("evaluate", tmp_path / "shipped", cwd=place)
            named = quick_sdb("evaluate", tmp_path / "shipped", "--dataset", "digits", cwd=place)
        finally:
            (tmp_path / "shipped").rename(place / "box" / "box")
        assert (silent.returncode, named.returncode) == (2, 0)
        assert "add --dataset" in silent.stderr
        assert (
            json.loads(named.stdout)["keyless"] == json.loads((place / "box/result.json").read_text())["keyless"]
        )


class TestCheck:
    @pytest.mark.parametrize(("name", "command"), [("teacher", "train"), ("box", "wrap"), ("thief", "distill")])
    def test_good(self, chain, quick_sdb, name, command):
        for args in ([], ["--for", command]):
            done = quick_sdb("check", name, *args, cwd=chain[0])
            assert (done.returncode, done.stdout) == (0, "")
            assert f"good for sdb {command}" in done.stderr

    def test_writes_nothing(self, quick_sdb, write_params, tmp_path):
        write_params(tmp_path / "new")
        assert quick_sdb("check", "new", cwd=tmp_path).returncode == 0
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["params.json"]


class TestWrapOptions:
    def test_a_key_of_ones_own_and_nasty_without_one(self, chain, quick_sdb, write_params):
        place, _ = chain
        write_params(place / "own", teacher="teacher", method="sdb", epochs=1, allowed_loss=1)
        done = quick_sdb("wrap", "own", "--key", "stranger.json", cwd=place)
        assert done.returncode == 0, done.stderr
        assert not (place / "own" / "key.json").exists()
        assert json.loads((place / "stranger.json").read_text())["id"] in (place / "own/box/box.json").read_text()

        write_params(place / "nasty", teacher="teacher", method="nasty", disturbance_weight=0.01, epochs=1)
        done = quick_sdb("wrap", "nasty", "--set", "allowed_loss=1", cwd=place)
        assert (done.returncode, list(json.loads(done.stdout))) == (0, ["teacher", "keyless", "validation"])
        assert not (place / "nasty" / "key.json").exists()

    def test_a_box_below_its_teacher_is_kept_and_ends_with_3(self, chain, quick_sdb, write_params):
        """What broke it is said, with what to try; a box that keeps its teacher's accuracy ends with 0."""
        place, _ = chain
        write_params(place / "broken", teacher="teacher", optimizer="sgd", learning_rate=50, schedule="constant")
        done = quick_sdb("wrap", "broken", "-s", "clip_norm=1", cwd=place)
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("the box is below its teacher by more than 1 point") == 1
        assert "a lower learning_rate (now 50)" in done.stderr
        result = json.loads(done.stdout)
        assert result == json.loads((place / "broken" / "result.json").read_text())
        assert "a lower learning_rate" in result["warning"]
        assert result["teacher"] == json.loads((place / "teacher" / "result.json").read_text())["accuracy"]
        assert (place / "broken" / "box" / "box.json").exists()
        log = (place / "broken" / "training.log").read_text()
        assert (
            f"test accuracy teacher {100 * result['teacher']:.1f} %, keyless" in log and "below its teacher" in log
        )
        assert "validation teacher accuracy" in log
        assert f"test accuracy teacher {100 * result['teacher']:.1f} %, keyless" in done.stderr
        assert "validation accuracy teacher" in done.stderr
        # A teacher as weak as this one moves by a few images whatever the rate.
        gentle = ("-s", "learning_rate=1e-9", "-s", "allowed_loss=0.2")
        done = quick_sdb("wrap", "broken", "--overwrite", *gentle, cwd=place)
        assert (done.returncode, "warning" in json.loads(done.stdout)) == (0, False), done.stderr

    def test_the_references_names(self, chain, quick_sdb, write_params):
        """A parameter file with the published key names runs unchanged."""
        place, _ = chain
        write_params(
            place / "reference",
            adversarial_model="net",
            adversarial_resume="teacher",
            num_epochs=1,
            epochs=None,
            lamb=0.5,
            weight=0.1,
            eta=0.001,
            temperature=4,
            gamma=0.1,
            schedule=[1],
            augmentation=1,
            num_workers=2,
            cuda=0,
            dropout_rate=0.0,
        )
        write_params(
            place / "reference_teacher", dropout_rate=0.0, cuda=0, num_workers=4, augmentation="yes", epochs=1
        )
        assert quick_sdb("train", "reference_teacher", "--set", "augmentation=1", cwd=place).returncode == 0
        done = quick_sdb(
            "wrap",
            "reference",
            "-s",
            "adversarial_resume=reference_teacher/best_model.tar",
            "-s",
            "allowed_loss=1",
            cwd=place,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((place / "reference/key.json").read_text())["blend"] == 0.5
