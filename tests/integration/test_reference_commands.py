"""The reference's four commands, from the repository's root as its documentation has them, and what its files name."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sdb import config
from sdb.audit.job import find_subject
from sdb.audit.plan import AuditSettings
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.cli.export import _box_in
from sdb.config import box_of
from sdb.data import ImageSet, Splits
from sdb.errors import CheckpointError
from sdb.models import build
from sdb.models.checkpoint import load_classifier
from sdb.runs.resolve import new_model
from sdb.service.model import load_served

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
SHORT = ("--set", "epochs=1", "--set", "subset_percent=0.3")
# Boxes of an epoch are below their teachers, which is no fault here.
ANY = ("--set", "allowed_loss=1")
# Each run of experiments/digits, in an order in which what it needs is there, by the reference's script for it.
DIGITS = {
    "teacher": "train_scratch.py",
    "student_alone": "train_scratch.py",
    "student_label_smoothing": "train_scratch.py",
    "sdb": "train_smb.py",
    "nasty": "train_smb.py",
    "box": "train_smb.py",
    "from_teacher": "train_kd.py",
    "thief_sdb": "train_kd.py",
    "thief": "train_kd.py",
    "partner_sdb": "train_kd_noise.py",
    "partner": "train_kd_noise.py",
}
# What the reference's loader subtracts and divides by; CIFAR-100 has CIFAR-10's.
CIFAR = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
CONSTANTS = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
# Of a wrap's run folder: all of these stand for the box in it.
NAMES = ("", "box", "last.safetensors", "best.safetensors", "last_model.tar", "best_model.tar")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What a clone of the repository has, without the results that may lie in this one."""
    place = tmp_path_factory.mktemp("root")
    for script in ROOT.glob("train_*.py"):
        shutil.copy(script, place)
    for file in sorted((ROOT / "experiments").rglob("params.json")):
        copy = place / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    return place


@pytest.fixture(scope="module")
def digits_runs(root, quick_sdb):
    """All runs of experiments/digits, an epoch each."""
    assert set(DIGITS) == {path.parent.name for path in (root / "experiments/digits").rglob("params.json")}
    for run, script in DIGITS.items():
        more = ANY if script == "train_smb.py" else ()
        done = quick_sdb(script, "--save_path", f"experiments/digits/{run}", *SHORT, *more, cwd=root)
        assert done.returncode == 0, (run, done.stderr)
        assert json.loads(done.stdout) == json.loads(
            (root / "experiments/digits" / run / "result.json").read_text()
        )
        assert ("best_model.tar" in done.stderr) == (run == "box")
    return root / "experiments" / "digits"


def test_what_the_reference_s_code_loads(digits_runs, digits):
    """A dict of the reference's three entries; its weights fit the bare network, its optimizer that network's."""
    pixels = torch.from_numpy(digits.test.images[:20]).float() / 255
    for run in DIGITS:
        folder = digits_runs / run
        assert (folder / "training.log").stat().st_size > 0
        assert (folder / "best_model.tar").exists() == (run != "box"), run
        if run == "box":  # its network is not what it answers with
            continue
        content = torch.load(folder / "best_model.tar", map_location="cpu", weights_only=True)
        assert {"epoch", "state_dict", "optim_dict"} <= content.keys()
        assert content["epoch"] == 1
        params = json.loads((folder / "params.resolved.json").read_text())
        assert params["normalisation"] == "reference"
        shape = (1, 8, 8)
        network = build(params["model_name"], num_classes=10, image_shape=shape, arguments=params["model_args"])
        network.load_state_dict(content["state_dict"], strict=True)
        optimizer = torch.optim.Adam(network.parameters())
        optimizer.load_state_dict(content["optim_dict"])
        assert len(optimizer.state) == len(list(network.parameters()))
        # It is what the run has found: normalised images give what pixels give there.
        whole = Box.load(folder / "box").classifier if (folder / "box").exists() else load_classifier(folder)
        with torch.no_grad():
            normalised = (pixels - whole.mean) / whole.std
            torch.testing.assert_close(network.eval()(normalised), whole.eval()(pixels))


def test_the_file_says_itself_how_it_is_normalised(digits_runs, tmp_path, digits):
    """Copied elsewhere, it is read as the run's own file; beside a longer run's, that one is read."""
    shutil.copy(digits_runs / "teacher" / "best_model.tar", tmp_path)
    pixels = torch.from_numpy(digits.test.images[:20]).float() / 255
    here, there = load_classifier(tmp_path / "best_model.tar"), load_classifier(digits_runs / "teacher")
    assert here.spec == there.spec
    assert here.class_names == there.class_names
    with torch.no_grad():
        torch.testing.assert_close(here(pixels), there(pixels), rtol=0, atol=0)
    shutil.copy(digits_runs / "student_alone" / "best.safetensors", tmp_path)
    assert load_classifier(tmp_path / "best_model.tar").spec.arguments["num_channels"] == 8
    with pytest.raises(CheckpointError, match="holds a net, not a resnet18"):
        load_classifier(digits_runs / "teacher" / "best_model.tar", model_name="resnet18")


def test_a_noise_file_finds_its_key_and_a_plain_one_needs_none(digits_runs, root, quick_sdb):
    """As published: `lamb` and no key; in the student's folder, else beside the box; --key names another."""
    student = {
        **{"model_name": "net", "num_channels": 8, "dropout_rate": 0.0, "dataset": "digits", "cuda": 0},
        **{"learning_rate": 3e-3, "schedule": [999], "gamma": 0.1, "batch_size": 64, "num_epochs": 1},
        **{"augmentation": 1, "num_workers": 4, "teacher_model": "net", "temperature": 4, "alpha": 0.9},
    }
    for run, blend in (("sdb", 0.5), ("box", 0.5)):  # a weight key has no blend
        place = root / f"noise_{run}"
        place.mkdir()
        teacher = f"experiments/digits/{run}/best_model.tar"
        (place / "params.json").write_text(json.dumps(student | {"teacher_resume": teacher, "lamb": blend}))
        results = {}
        for script, *more in (
            ("train_kd_noise.py",),
            ("train_kd_noise.py", "--key", f"experiments/digits/{run}/key.json"),
            ("train_kd.py",),
        ):
            done = quick_sdb(script, "--save_path", place, *more, "--overwrite", cwd=root)
            assert done.returncode == 0, done.stderr
            results[script, *more] = json.loads(done.stdout)
        first, named, plain = results.values()
        assert first == named
        box = json.loads((digits_runs / run / "result.json").read_text())
        assert first["teacher"] == box["keyed"]
        assert plain["teacher"] == box["keyless"]
        # The student's folder comes first.
        shutil.copy(digits_runs / ("box" if run == "sdb" else "sdb") / "key.json", place / "key.json")
        done = quick_sdb("train_kd_noise.py", "--save_path", place, "--overwrite", cwd=root)
        assert done.returncode == 2
        assert "key" in done.stderr
    plain = root / "noise_none"
    plain.mkdir()
    (plain / "params.json").write_text(json.dumps(student | {"teacher_resume": "experiments/digits/teacher"}))
    done = quick_sdb("train_kd_noise.py", "--save_path", plain, cwd=root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "neither lamb nor a key" in done.stderr


@pytest.mark.parametrize("run", ["box", "sdb", "nasty"])
def test_a_checkpoint_that_belongs_to_a_box_stands_for_the_box(digits_runs, run, monkeypatch):
    monkeypatch.chdir(digits_runs / run)
    for place in (digits_runs / run, Path()):  # also from within the folder
        boxes = [place / name for name in NAMES]
        wanted = Box.load(boxes[1]).info.id
        for path in boxes:
            assert load_model(path).info.id == wanted, path
            assert load_served(path).box_id == wanted
            assert Box.load(_box_in(path)).info.id == wanted
            subject, _ = find_subject(path, None, digits_runs / "teacher", None, run == "nasty", AuditSettings())
            assert subject.files.box == boxes[1]
            with pytest.raises(CheckpointError, match="stands for the box"):
                load_classifier(path)
    # Another file in the folder is what it is, and so is a folder without a box.
    assert box_of(digits_runs / run / "other.tar") is None
    assert box_of(digits_runs / "teacher") is None


def test_in_every_command(digits_runs, root, quick_sdb):
    """The same answers under each name; what cannot be done with a box is refused."""
    key = "experiments/digits/box/key.json"
    answers = set()
    for name in NAMES:
        path = f"experiments/digits/box/{name}"
        done = quick_sdb("evaluate", path, "--key", key, cwd=root)
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
        done = quick_sdb("wrap", "experiments/digits/nasty", "--set", f"teacher={path}", "--overwrite", cwd=root)
        assert done.returncode == 2
        assert "is a box already" in done.stderr
        more = f'more_teachers=["{path}"]'
        done = quick_sdb("wrap", "experiments/digits/box", "--set", more, "--overwrite", cwd=root)
        assert done.returncode == 2
        assert "stands for the box" in done.stderr
    assert len(answers) == 1
    tar = "experiments/digits/box/best_model.tar"
    owner = "experiments/digits/box/owner.json"
    traced = quick_sdb(
        "trace", "experiments/digits/thief", "--box", tar, "--owner", owner, "--json", "-", cwd=root
    )
    assert traced.returncode == 0, traced.stderr
    exported = quick_sdb("export", tar, "--to", "pt2", "--out", root / "x.pt2", cwd=root)
    assert exported.returncode == 0, exported.stderr
    # A thief of the named checkpoint learns from the box's answers, bit for bit what it learns from the folder's.
    students = []
    for teacher in ("experiments/digits/box", tar):
        done = quick_sdb(
            "distill", "experiments/digits/thief", *SHORT, "--set", f"teacher={teacher}", "--overwrite", cwd=root
        )
        assert done.returncode == 0, done.stderr
        students.append(load_classifier(digits_runs / "thief").state_dict())
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_a_missing_box_is_to_be_wrapped_first(root, quick_sdb):
    """Where only params.json says that the folder is a wrap's, and where a wrap was started."""
    folder = root / "unwrapped"
    folder.mkdir()
    shutil.copy(root / "experiments/digits/sdb/params.json", folder)
    student = json.loads((root / "experiments/digits/partner_sdb/params.json").read_text())
    for name, given in (
        ("a", {"teacher": "unwrapped", "key": "unwrapped/key.json"}),
        ("b", {"teacher": "unwrapped/best_model.tar", "key": None, "key_blend": 0.9}),
    ):
        (root / name).mkdir()
        (root / name / "params.json").write_text(json.dumps(student | given))
    for begun in (False, True):
        if begun:  # and not finished: its network alone is there
            (folder / "params.resolved.json").write_text(json.dumps({"method": "sdb", "dataset": "digits"}))
            (folder / "last.safetensors").write_bytes(b"")
        for arguments in (
            ("distill", "a"),
            ("distill", "b"),
            ("evaluate", "unwrapped"),
            ("evaluate", "unwrapped/last.safetensors"),
            ("serve", "unwrapped/best_model.tar"),
            ("export", "unwrapped", "--to", "pt2", "--out", "x.pt2"),
            ("audit", "unwrapped"),
            ("trace", "unwrapped", "--box", "unwrapped", "--owner", "o"),
            ("wrap", "experiments/digits/nasty", "--set", "teacher=unwrapped", "--overwrite"),
        ):
            done = quick_sdb(*arguments, cwd=root)
            assert (done.returncode, done.stdout) == (2, ""), arguments
            assert f"wrap it first: sdb wrap unwrapped{' --resume' if begun else ''}\n" in done.stderr, arguments


def test_a_published_nasty_checkpoint_is_what_it_is(tmp_path, digits):
    """A file of the reference's authors in a wrap's folder that we never ran: a plain network, and no box."""
    (tmp_path / "params.json").write_text(json.dumps({"model_name": "net", "teacher": "t", "method": "nasty"}))
    network = build("net", num_classes=10, image_shape=(1, 8, 8), arguments={"num_channels": 4})
    torch.save({"epoch": 1, "state_dict": network.state_dict(), "optim_dict": {}}, tmp_path / "best_model.tar")
    loaded = load_classifier(
        tmp_path / "best_model.tar",
        model_name="net",
        model_args={"num_channels": 4},
        num_classes=10,
        image_shape=(1, 8, 8),
    )
    assert torch.equal(loaded.network.fc2.weight, network.fc2.weight)


def test_what_a_box_differs_in_from_its_teacher_is_named(digits_runs, root, quick_sdb):
    for change, words in (
        ("model_args.num_channels=8", "num_channels is 8, the teacher's 24"),
        ("model_name=resnet18", "model_name: resnet18 differs from the teacher's net"),
    ):
        done = quick_sdb("wrap", "experiments/digits/sdb", "--set", change, "--overwrite", cwd=root)
        assert done.returncode == 2
        assert words in done.stderr
        assert "net differs from the teacher's net" not in done.stderr


def test_messages_of_the_commands(digits_runs, root, quick_sdb):
    done = quick_sdb("train_scratch.py", "--save_path", "experiments/CIFAR10/sdb/resnet18", cwd=root)
    assert done.stderr == (
        "sdb: experiments/CIFAR10/sdb/resnet18/params.json: this is a wrap's file: "
        "sdb wrap experiments/CIFAR10/sdb/resnet18\n"
    )
    done = quick_sdb("train_smb.py", "--save_path", "experiments/digits/sdb", cwd=root)
    assert "already holds a run" in done.stderr
    published = root / "published"
    published.mkdir()
    file = {
        "model_name": "net",
        "adversarial_model": "net",
        "adversarial_resume": "t",
        "weight": 1,
        "num_channels": 3,
    }
    (published / "params.json").write_text(json.dumps(file))
    done = quick_sdb("check", "published", cwd=root)
    assert done.returncode == 0
    for line in (
        "published: good for sdb wrap",
        "wrap: it has weight",
        "method=nasty: the file has adversarial_model, and neither lamb nor eta",
        "start=scratch, forward=separate: as in Nasty Teacher's train_nasty.py",
        "teacher_args={num_channels: 3}",
    ):
        assert line in done.stderr


def test_without_cifar_one_line_says_where_to_put_it(root, quick_sdb):
    for script, run in (
        ("train_scratch.py", "baseline/resnet18"),
        ("train_smb.py", "kd_nasty_resnet18/nasty_resnet18"),
        ("train_smb.py", "sdb/resnet18"),
        ("train_kd.py", "kd_nasty_resnet18/net"),
        ("train_kd_noise.py", "kd_sdb_resnet18_keyed/net"),
    ):
        folder = root / "experiments" / "CIFAR10" / run
        done = quick_sdb(script, "--save_path", folder.relative_to(root), cwd=root)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("sdb: CIFAR-10 was not found. Looked in ")
        assert "Get cifar-10-python.tar.gz from" in done.stderr
        assert [path.name for path in folder.iterdir()] == ["params.json"]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny_imagenet", "folder"])
def test_a_reference_run_is_normalised_by_the_reference_s_constants(dataset):
    """Where it has some; a run of ours, and data that the reference does not know, by what was measured."""
    images = ImageSet(np.zeros((2, 3, 8, 8), np.uint8), np.arange(2))
    measured = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    data = Splits(dataset, images, images, images, ("a", "b"), *measured)
    params = {"model_name": "mlp", "dataset": dataset}
    for more, constants in (({}, measured), ({"gamma": 0.1}, CONSTANTS.get(dataset, measured))):
        model = new_model(config.validate(params | more, "train", "x"), data, 0)
        assert (model.spec.mean, model.spec.std) == constants


@pytest.mark.slow
def test_an_epoch_of_each_on_cifar(root, quick_sdb):
    """The published CNN as teacher and student, by the published names; few training images, the whole test set."""
    pytest.importorskip("pyarrow")
    given = [Path(each) for each in (os.environ.get("SDB_DATA"), SHARED) if each]
    data = next((each for each in given if list(each.glob("cifar10/train-*.parquet"))), None)
    if data is None:
        pytest.skip(f"CIFAR-10 parquet is neither in {SHARED}/cifar10 nor in the folder named by SDB_DATA")
    sets = ("--set", f"data_root={data.resolve()}", "--set", "epochs=1", "--set", "subset_percent=0.02")
    files = runpy.run_path(str(ROOT / "tests" / "contract" / "published_files.py"))["published"]()
    cnn, paper, place = files["CIFAR10/baseline/cnn"], files["CIFAR10/smb-resnet10"], "experiments/cnn"
    student = files["CIFAR10/kd_normal_resnet18/cnn"] | {"teacher_model": "net"}
    student["teacher_resume"] = f"{place}/smb/best_model.tar"
    wrap = {name: paper[name] for name in ("temperature", "weight", "lamb", "eta")}
    wrap |= {"adversarial_model": "net", "adversarial_resume": f"{place}/baseline/best_model.tar"}
    for script, run, file in (
        ("train_scratch.py", "baseline", cnn),
        ("train_smb.py", "smb", cnn | wrap),
        ("train_kd.py", "kd", student),
        ("train_kd_noise.py", "kd_noise", student | {"lamb": 0.9}),
    ):
        folder = root / place / run
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps(file))
        more = ANY if run == "smb" else ()
        done = quick_sdb(script, "--save_path", f"{place}/{run}", *sets, *more, cwd=root)
        assert done.returncode == 0, done.stderr
        content = torch.load(folder / "best_model.tar", map_location="cpu", weights_only=True)
        build("net", num_classes=10).load_state_dict(content["state_dict"], strict=True)
        # What the reference's loader subtracts and divides by is what the network was trained with.
        whole = Box.load(folder / "box").classifier if run == "smb" else load_classifier(folder)
        assert (whole.spec.mean, whole.spec.std) == CIFAR
    taught = {
        run: json.loads((root / place / run / "result.json").read_text()) for run in ("smb", "kd", "kd_noise")
    }
    assert taught["kd"]["teacher"] == taught["smb"]["keyless"]
    assert taught["kd_noise"]["teacher"] == taught["smb"]["keyed"]
