"""What a user can mend is said in one line, with exit code 2; nothing is lost and nothing is half written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from sdb.models.checkpoint import load_classifier

PROGRESS = re.compile(r"(train|wrap|distill) \S+: epoch \d+/\d+ ")
# What a run may leave that was started and could not go on; a first run is not in the way of the next.
BEGUN = {".lock", "params.resolved.json", "environment.json", "training.log"}


@pytest.fixture(scope="module")
def template(tmp_path_factory, quick_sdb, write_params):
    """Run folders to spoil: teacher, box, student (finished), new ones not yet run, and a key of no box."""
    place = tmp_path_factory.mktemp("template")
    write_params(place / "teacher", epochs=1)
    write_params(place / "box", epochs=1, teacher="teacher", method="sdb", allowed_loss=1)
    write_params(place / "student", epochs=1, teacher="box", kd_temperature=4)
    for command, name in (("train", "teacher"), ("wrap", "box"), ("distill", "student")):
        done = quick_sdb(command, name, cwd=place)
        assert done.returncode == 0, done.stderr
    assert quick_sdb("key", "new", "other.json", "--kind", "image", cwd=place).returncode == 0
    write_params(place / "new")
    write_params(place / "new_box", teacher="teacher", method="sdb")
    write_params(place / "new_student", teacher="box", kd_temperature=4)
    return place


@pytest.fixture
def place(template, tmp_path):
    """A copy of the run folders for one test."""
    return shutil.copytree(template, tmp_path / "place")


def snapshot(place):
    """Every file and what is in it."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def check_refused(done, *words):
    """Exit code 2; stdout empty; progress lines, then one line that has the words."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *talk, last = done.stderr.splitlines()
    # A teacher that is hardly trained is told of, as are defaults of a file; neither is the refusal.
    assert all(PROGRESS.match(line) or line.startswith("the teacher is right about") for line in talk), done.stderr
    assert last.startswith("sdb: ")
    for word in words:
        assert word in last, last


def write_idx(path, array):
    """One IDX file, as Fashion-MNIST is published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_fashion(folder, labels=None):
    """A small Fashion-MNIST."""
    labels = np.arange(80) % 10 if labels is None else labels
    for role in ("train", "t10k"):
        write_idx(folder / f"{role}-images-idx3-ubyte", np.arange(80 * 784).reshape(80, 28, 28) % 251)
        write_idx(folder / f"{role}-labels-idx1-ubyte", labels)


def write_images(folder, classes=3, odd=None):
    """A folder of class folders of 8x8 images; image `odd` is larger."""
    for label in range(classes):
        for number in range(20):
            path = folder / f"class{label}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (9, 8) if odd == (label, number) else (8, 8)
            Image.new("L", size, color=10 * number + label).save(path)


def parameters(place, text):
    (place / "new" / "params.json").write_text(text)


def fashion_truncated(place):
    write_fashion(place / "data")
    path = place / "data" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])


def cifar_truncated(place):
    folder = place / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)))
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073 * 10))
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-100])


def archive_truncated(place):
    (place / "data").mkdir()
    (place / "data" / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b\x08\x00 not a whole archive")


def parquet_truncated(place):
    for role in ("train", "test"):
        path = place / "data" / f"{role}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PAR1 and no more")


def change_json(path, **changes):
    mode = path.stat().st_mode
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    path.chmod(mode)


def add_byte(path):
    path.write_bytes(path.read_bytes() + b"x")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_reference(place, change=lambda weights: weights):
    """The teacher's weights in the layout of a reference checkpoint."""
    network = load_classifier(place / "teacher").network
    content = {"epoch": 1, "state_dict": change(dict(network.state_dict())), "optim_dict": {}}
    torch.save(content, place / "teacher.tar")


def nothing(place):
    pass


NOT_THERE = {"teacher": "nowhere"}
STUDENT = ["distill", "new_student"]
FASHION = ["train", "new", "-s", "dataset=fashion_mnist", "-s", "data_root=data"]
CIFAR = ["train", "new", "-s", "dataset=cifar10", "-s", "data_root=data"]
FOLDER = ["train", "new", "-s", "dataset=folder", "-s", "data_root=data"]

# name: (what is spoiled, the command, words of the one line)
PARAMETERS = {
    "no folder": (nothing, "train nowhere", ["nowhere/params.json", "no such file", "sdb init nowhere"]),
    "no folder named": (nothing, "train", ["DIR", "--save_path"]),
    "folder named twice": (nothing, "train new --save_path new", ["once"]),
    "missing": (lambda p: (p / "new/params.json").unlink(), "train new", ["new/params.json", "no such file"]),
    "empty": (lambda p: parameters(p, ""), "train new", ["new/params.json:1:1", "not valid JSON"]),
    "broken": (lambda p: parameters(p, '{"a": 1,\n "b"}'), "train new", ["params.json:2:5", "not valid JSON"]),
    "a list": (lambda p: parameters(p, "[1]"), "train new", ["new/params.json", "list", "object"]),
    "not text": (lambda p: (p / "new/params.json").write_bytes(b"\xff\xfe{"), "train new", ["cannot be read"]),
    "unknown name": (nothing, "train new -s lerning_rate=1", ["lerning_rate", "did you mean 'learning_rate'"]),
    "another command's": (nothing, "train new -s loss=kd", ["loss", "unknown parameter"]),
    "wrong type": (nothing, "train new -s epochs=many", ["epochs", "integer", '"many"']),
    "fraction of an epoch": (nothing, "train new -s epochs=1.5", ["epochs", "1.5"]),
    "range": (nothing, "train new -s batch_size=0", ["batch_size", "greater than or equal to 1", "got 0"]),
    "not a number": (nothing, "train new -s learning_rate=NaN", ["learning_rate"]),
    "above one": (nothing, "train new -s subset_percent=2", ["subset_percent", "got 2"]),
    "a choice": (nothing, "train new -s optimizer=lion", ["optimizer", "'sgd'", "'adam'", "lion"]),
    "all at once": (
        lambda p: parameters(p, '{"dataset": 5, "epochs": 0, "momentum": 1, "sede": 1}'),
        "train new",
        [
            "model_name: is missing",
            "dataset:",
            "epochs:",
            "momentum:",
            "sede: unknown parameter, did you mean 'seed'",
        ],
    ),
    "two names, two values": (
        lambda p: parameters(p, '{"model_name": "net", "epochs": 1, "num_epochs": 2}'),
        "train new",
        ["epochs", "num_epochs", "keep one"],
    ),
    "set without a value": (nothing, "train new --set epochs", ["'epochs'", "KEY=VALUE"]),
    "check": (nothing, "check new -s epochs=0 -s sede=1", ["new/params.json", "epochs", "did you mean 'seed'"]),
    "check for what": (nothing, "check new --for training", ["training", "train, wrap, distill"]),
    "both weights zero": (
        nothing,
        "distill new_student -s kd_weight=0 -s ce_weight=0",
        ["kd_weight", "ce_weight"],
    ),
    "a loss that teaches nothing": (
        nothing,
        "distill new_student -s loss=dkd -s dkd_target_weight=0 -s dkd_rest_weight=0",
        ["dkd_target_weight", "dkd_rest_weight", "set one above 0"],
    ),
    "contradiction": (nothing, "train teacher --resume --overwrite", ["--resume", "--overwrite"]),
    "nothing to resume": (nothing, "train new --resume", ["new", "leave --resume out"]),
    "a run is there": (nothing, "train teacher", ["teacher already holds a run", "--resume", "--overwrite"]),
    "demo method": (nothing, "demo --out out --method magic", ["method", "magic", "sdb"]),
    "demo is there": (lambda p: (p / "out/teacher").mkdir(parents=True), "demo --out out", ["out", "--overwrite"]),
    "blend": (nothing, "key new k.json --kind image --blend 1.5", ["1.5", "(0, 1]"]),
}
MODELS = {
    "unknown model": (nothing, "train new -s model_name=resnet19", ["'resnet19'", "did you mean resnet18", "mlp"]),
    "unknown argument": (
        nothing,
        'train new -s model_args={"widht":3}',
        ["net does not take widht", "num_channels"],
    ),
    "missing package": (nothing, "train new -s model_name=no_package:make", ["no_package", "install it"]),
    "odd factory": (nothing, "train new -s model_name=json:nothing", ["json has no nothing"]),
    "argument of the wrong type": (nothing, "train new -s num_channels=wide", ["num_channels", "wide"]),
    "a bad model costs no run": (
        nothing,
        "train teacher --overwrite -s model_name=rasnet18",
        ["rasnet18", "resnet18"],
    ),
    "no GPU": (nothing, "train teacher --overwrite -s device=cuda", ["device", "cuda", "cpu or auto"]),
    "device nonsense": (nothing, "train teacher --overwrite -s device=toaster", ["device", "'toaster'", "cuda:N"]),
    "evaluate on nonsense": (nothing, "evaluate teacher --device toaster", ["device", "'toaster'"]),
}
DATA = {
    "unknown": (nothing, "train new -s dataset=digit", ["'digit'", "did you mean 'digits'", "cifar10"]),
    "check unknown": (nothing, "check new -s dataset=digit", ["did you mean 'digits'"]),
    "absent": (nothing, " ".join(CIFAR), ["CIFAR-10 was not found", "place/data", "https://", "data_root"]),
    "absent by default": (nothing, "train new -s dataset=fashion_mnist", ["place/data", "SDB_DATA"]),
    "truncated IDX": (fashion_truncated, " ".join(FASHION), ["train-images-idx3-ubyte"]),
    "truncated binary": (cifar_truncated, " ".join(CIFAR), ["data_batch_3.bin"]),
    "truncated archive": (archive_truncated, " ".join(CIFAR), ["cifar-10-python.tar.gz"]),
    "truncated parquet": (parquet_truncated, " ".join(CIFAR), ["train-00000-of-00001.parquet"]),
    "label out of range": (
        lambda p: write_fashion(p / "data", np.arange(80) % 11),
        " ".join(FASHION),
        ["train-labels-idx1-ubyte", "10"],
    ),
    "fewer labels": (lambda p: write_fashion(p / "data", np.arange(79) % 10), " ".join(FASHION), ["79", "80"]),
    "another size": (lambda p: write_images(p / "data", odd=(1, 7)), " ".join(FOLDER), ["07.png", "8", "9"]),
    "one class": (lambda p: write_images(p / "data", classes=1), " ".join(FOLDER), ["class"]),
    "not an image": (
        lambda p: (write_images(p / "data"), (p / "data/class1/03.png").write_bytes(b"no")),
        " ".join(FOLDER),
        ["03.png"],
    ),
    "empty folder": (lambda p: (p / "data").mkdir(), " ".join(FOLDER), ["data"]),
    "evaluate elsewhere": (
        lambda p: write_images(p / "data"),
        "evaluate teacher --dataset folder --data-root data",
        ["teacher", "10 classes", "3"],
    ),
    "evaluate on nothing": (nothing, "evaluate nowhere", ["nowhere", "no such"]),
}
TEACHERS = {
    "absent": (nothing, "wrap new_box -s teacher=nowhere", ["nowhere", "train the teacher first"]),
    "not trained": (nothing, "wrap new_box -s teacher=new", ["new", "train it first"]),
    "not named": (nothing, "wrap new", ["teacher: is missing"]),
    "another architecture": (
        nothing,
        "distill new_student -s teacher=teacher -s teacher_model=mlp",
        ["net", "mlp"],
    ),
    "another for the box": (nothing, "wrap new_box -s num_channels=8", ["num_channels", "8", "4", "teacher"]),
    "a box": (nothing, "wrap new_box -s teacher=box", ["box", "already", "unprotected"]),
    "other classes": (
        lambda p: write_images(p / "data"),
        "distill new_student -s teacher=teacher -s dataset=folder -s data_root=data",
        ["10 classes", "3"],
    ),
    "box of other classes": (
        lambda p: write_images(p / "data"),
        "distill new_student -s dataset=folder -s data_root=data",
        ["10 classes", "3"],
    ),
    "other images": (
        lambda p: write_fashion(p / "data"),
        "wrap new_box -s dataset=fashion_mnist -s data_root=data",
        ["(1, 8, 8)", "(1, 28, 28)"],
    ),
    "half a checkpoint": (
        lambda p: halve(p / "teacher/last.safetensors"),
        "wrap new_box",
        ["teacher/last.safetensors", "not a whole safetensors file"],
    ),
    "half a checkpoint to resume": (
        lambda p: halve(p / "teacher/last.safetensors"),
        "train teacher --resume -s epochs=1",
        ["teacher/last.safetensors", "not a whole"],
    ),
    "not a checkpoint": (
        nothing,
        "wrap new_box -s teacher=teacher/params.json -s teacher_model=net",
        ["teacher/params.json"],
    ),
    "reference without a name": (
        save_reference,
        "wrap new_box -s teacher=teacher.tar",
        ["bare weights do not say their architecture", "teacher_model"],
    ),
    "reference of another width": (
        save_reference,
        "wrap new_box -s teacher=teacher.tar -s teacher_model=net",
        ["teacher.tar", "another architecture", "shape"],
    ),
    "reference with less": (
        lambda p: save_reference(p, lambda weights: dict(list(weights.items())[1:])),
        'wrap new_box -s teacher=teacher.tar -s teacher_model=net -s teacher_args={"num_channels":4}',
        ["teacher.tar", "1 missing"],
    ),
    "reference cut off": (
        lambda p: (save_reference(p), halve(p / "teacher.tar")),
        "wrap new_box -s teacher=teacher.tar -s teacher_model=net",
        ["teacher.tar"],
    ),
}
KEYS = {
    "of another box": (nothing, "distill new_student --key other.json", ["another box"]),
    "of another box to evaluate": (nothing, "evaluate box --key other.json", ["another box"]),
    "for a plain teacher": (
        nothing,
        "distill new_student -s teacher=teacher --key other.json",
        ["not a box", "key"],
    ),
    "for a plain classifier": (nothing, "evaluate teacher --key other.json", ["not a box"]),
    "absent": (nothing, "distill new_student --key nowhere.json", ["nowhere.json"]),
    "blend without a key": (
        lambda p: (p / "box/key.json").unlink(),
        "distill new_student -s key_blend=0.9",
        ["key_blend", "new_student/key.json", "box/key.json"],
    ),
    "blend of another": (nothing, "wrap box --overwrite -s key_blend=0.3", ["key_blend", "0.3", "0.9"]),
    "absent for a wrap": (nothing, "wrap box --overwrite --key nowhere.json", ["nowhere.json"]),
    "readable by others": (
        lambda p: (p / "box/key.json").chmod(0o644),
        "distill new_student --key box/key.json",
        ["box/key.json", "0644", "chmod 600"],
    ),
    "readable by the group": (
        lambda p: (p / "other.json").chmod(0o640),
        "key show other.json",
        ["0640", "chmod 600"],
    ),
    "cut off": (lambda p: halve(p / "other.json"), "key show other.json", ["other.json"]),
    "another secret": (
        lambda p: change_json(p / "other.json", secret="00" * 32),
        "distill new_student --key other.json",
        ["other.json", "altered"],
    ),
    "another blend": (
        lambda p: change_json(p / "other.json", blend=0.5),
        "distill new_student --key other.json",
        ["other.json"],
    ),
    "short secret": (
        lambda p: change_json(p / "other.json", secret="00" * 8),
        "distill new_student --key other.json",
        ["other.json"],
    ),
    "not a key": (lambda p: (p / "new/params.json").chmod(0o600), "key show new/params.json", ["params.json"]),
    "there already": (nothing, "key new other.json", ["other.json exists"]),
}
BOXES = {
    "altered weights": (
        lambda p: add_byte(p / "box/box/weights.safetensors"),
        "evaluate box",
        ["box/box", "weights.safetensors", "altered or damaged"],
    ),
    "missing weights": (
        lambda p: (p / "box/box/weights.safetensors").unlink(),
        "distill new_student",
        ["weights.safetensors", "missing"],
    ),
    "broken manifest": (lambda p: halve(p / "box/box/box.json"), "distill new_student", ["box.json", "damaged"]),
    "another file": (lambda p: (p / "box/box/run.py").write_text("1"), "evaluate box", ["run.py", "remove it"]),
    "newer version": (
        lambda p: change_json(p / "box/box/box.json", sdb_box=99),
        "evaluate box",
        ["99", "update sdb"],
    ),
    "not an archive": (lambda p: (p / "b.zip").write_text("no"), "evaluate b.zip --dataset digits", ["b.zip"]),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "parameters": PARAMETERS,
        "models": MODELS,
        "data": DATA,
        "teachers": TEACHERS,
        "keys": KEYS,
        "boxes": BOXES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_touched(name, place, quick_sdb):
    spoil, line, words = CASES[name]
    if "cuda" in line and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    spoil(place)
    before = snapshot(place)
    done = quick_sdb(*line.split(), cwd=place)
    check_refused(done, *words)
    after = snapshot(place)
    # A lock is an empty file, no trace of a run; a run that is gone on with logs why it stopped.
    free = (".lock", "training.log") if "--resume" in line else (".lock",)
    for path in [path for path in before | after if path.endswith(free)]:
        before.pop(path, None)
        after.pop(path, None)
    assert after == before


class Shell:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("write", ["pickle", "torch"])
@pytest.mark.parametrize("command", ["wrap new_box", "distill new_student"])
def test_a_pickle_is_not_run(place, quick_sdb, write, command):
    mark = place / "mark"
    content = {"state_dict": Shell(mark), "epoch": 1}
    if write == "pickle":
        (place / "teacher.tar").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, place / "teacher.tar")
    before = snapshot(place)
    done = quick_sdb(*command.split(), "-s", "teacher=teacher.tar", "-s", "teacher_model=net", cwd=place)
    check_refused(done, "teacher.tar", "more than tensors", "safetensors")
    assert not mark.exists()
    assert snapshot(place) == before


class TestDivergence:
    def test_the_first_epoch(self, place, quick_sdb):
        done = quick_sdb("train", "new", "-s", "learning_rate=1e30", "-s", "optimizer=sgd", cwd=place)
        check_refused(done, "epoch 1", "cross_entropy", "not finite", "learning_rate", "clip_norm")
        assert {path.name for path in (place / "new").iterdir()} == BEGUN | {"params.json"}
        assert "TrainingError" in (place / "new" / "training.log").read_text()
        assert quick_sdb("train", "new", cwd=place).returncode == 0

    def test_a_later_one_keeps_the_last_good(self, place, quick_sdb):
        """The rate explodes at epoch 2: the checkpoint is that of epoch 1, and can be evaluated."""
        diverging = ["-s", "schedule=[1]", "-s", "schedule_factor=1e35", "-s", "optimizer=sgd", "-s", "epochs=3"]
        done = quick_sdb("train", "new", *diverging, cwd=place)
        check_refused(done, "epoch 2", "not finite", "the last finite one, is kept")
        assert len((place / "new" / "metrics.jsonl").read_text().splitlines()) == 1
        assert not (place / "new" / "result.json").exists()
        done = quick_sdb("evaluate", "new", cwd=place)
        assert done.returncode == 0
        assert 0 <= json.loads(done.stdout)["accuracy"] <= 1

    def test_a_box(self, place, quick_sdb):
        done = quick_sdb("wrap", "new_box", "-s", "disturbance_weight=1e38", cwd=place)
        check_refused(done, "disturbance", "not finite", "lower disturbance_weight")
        assert not (place / "new_box" / "box").exists()


class TestFullDisk:
    def left(self, folder):
        """No temporary file may stay."""
        names = {path.name for path in folder.rglob("*")}
        assert not [name for name in names if name.startswith(".") and name != ".lock"], names
        return names

    def test_a_key(self, place, quick_sdb):
        before = snapshot(place)
        check_refused(quick_sdb("key", "new", "k.json", cwd=place, file_limit=100), "k.json", "free space")
        assert snapshot(place) == before

    def test_the_first_checkpoint(self, place, quick_sdb):
        done = quick_sdb("train", "new", cwd=place, file_limit=20_000)
        check_refused(done, "new/last.safetensors", "free space")
        assert self.left(place / "new") == BEGUN | {"params.json", "best.safetensors"}

    def test_even_the_log(self, place, quick_sdb):
        """No traceback of the logging module either."""
        limit = 700
        check_refused(quick_sdb("train", "new", cwd=place, file_limit=limit), "free space")
        assert all(path.stat().st_size <= limit for path in (place / "new").iterdir())

    def test_a_run_in_the_middle_loses_nothing(self, place, quick_sdb):
        """The checkpoint grows with the history, until it no longer fits."""
        size = (place / "teacher" / "last.safetensors").stat().st_size
        done = quick_sdb("train", "new", "-s", "epochs=40", cwd=place, file_limit=size + 900)
        check_refused(done, "new/last.safetensors", "free space")
        self.left(place / "new")
        kept = len((place / "new" / "metrics.jsonl").read_text().splitlines())
        assert 1 <= kept < 40
        done = quick_sdb("train", "new", "--resume", "-s", "epochs=40", cwd=place)
        assert done.returncode == 0, done.stderr
        assert len((place / "new" / "metrics.jsonl").read_text().splitlines()) == 40

    def test_a_box(self, place, quick_sdb):
        """The run is whole, the box did not fit: resuming writes it."""
        weights = (place / "box" / "box" / "weights.safetensors").stat().st_size
        manifest = (place / "box" / "box" / "box.json").stat().st_size
        assert manifest < weights
        shutil.rmtree(place / "box" / "box")
        done = quick_sdb("wrap", "box", "--resume", cwd=place, file_limit=weights - 1)
        check_refused(done, "weights.safetensors", "free space")
        self.left(place / "box")
        assert not (place / "box" / "box").exists()
        assert quick_sdb("wrap", "box", "--resume", cwd=place).returncode == 0
        assert (place / "box" / "box" / "weights.safetensors").exists()

    def test_a_real_one(self, place, quick_sdb):
        disk = place / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a file system is not permitted here")
        try:
            shutil.copytree(place / "new", disk / "new")
            check_refused(
                quick_sdb("train", "disk/new", "-s", "epochs=40", cwd=place), "disk/new", "No space left"
            )
            self.left(disk / "new")
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.parametrize(
        "line",
        ["train new/params.json", "key new new/params.json/k.json", "demo --out new/params.json/demo"],
    )
    def test_a_folder_that_cannot_be(self, place, quick_sdb, line):
        """Under a file, where not even root can write."""
        before = snapshot(place)
        check_refused(quick_sdb(*line.split(), cwd=place), "new/params.json")
        assert snapshot(place) == before

    def test_json_of_the_demo(self, place, quick_sdb):
        """Said before a minute of work, not after it."""
        done = quick_sdb("demo", "--out", "demo", "--json", "new/params.json/x.json", cwd=place)
        check_refused(done, "new/params.json/x.json")
        assert not (place / "demo").exists()
