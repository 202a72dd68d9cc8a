"""Every published parameter file means the run that the reference's script would do, field by field."""

import itertools
import json
import runpy
from pathlib import Path

import pytest

from sdb import config
from sdb.config import COMMANDS
from sdb.errors import ConfigError

FILES = runpy.run_path(str(Path(__file__).with_name("published_files.py")))["published"]()
# The reference's code, whatever the file says: SGD(momentum=0.9, weight_decay=5e-4), or Adam for its `net`, which is
# what "auto" does; float32; the loader's constants; crops and flips; seed 0; all training images.
CODE = {
    "optimizer": "auto",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "precision": "float32",
    "normalisation": "reference",
    "augment": True,
    "clip_norm": None,
    "accumulation_steps": 1,
    "seed": 0,
    "subset_percent": 1.0,
    "image_size": None,
    "device": "auto",
}


def expected(file):
    """What the reference's scripts do with a file: under our names, all that decides a result."""
    name = file["model_name"]
    own = {"num_channels": 32, "dropout_rate": 0.0} if name == "net" else {}
    run = {
        **CODE,
        "model_name": name,
        "model_args": own,
        "dataset": file["dataset"],
        "epochs": file["num_epochs"],
        "batch_size": 128,
        "learning_rate": file["learning_rate"],
        "schedule": tuple(file["schedule"]),
        "schedule_factor": file["gamma"],
    }
    if "adversarial_model" in file:
        method = "sdb" if "lamb" in file else "nasty"
        return "wrap", {
            **run,
            "teacher": Path(file["adversarial_resume"]),
            "teacher_model": file["adversarial_model"],
            "teacher_args": {},
            "method": method,
            "start": "scratch",
            "forward": "separate",
            "temperature": file["temperature"],
            "disturbance_weight": file["weight"],
            "preservation_weight": 1.0,
            "augmentation_weight": 0.001,
            "key_blend": 0.9 if method == "sdb" else None,
            "key": None,
            "budget": None,
        }
    if "teacher_model" in file:
        return "distill", {
            **run,
            "teacher": Path(file["teacher_resume"]),
            "teacher_model": file["teacher_model"],
            "teacher_args": {},
            "loss": "kd",
            "kd_temperature": file["temperature"],
            "kd_weight": 0.9,
            "label_smoothing": 0.0,
            "labels": True,
            "key": None,
            "key_blend": None,
            "views": None,
        }
    return "train", {**run, "label_smoothing": 0.0}


def written(folder, file):
    (folder / "params.json").write_text(json.dumps(file))
    return folder


def test_every_published_file_is_the_reference_s_run(tmp_path):
    assert len(FILES) == 61
    for run, file in FILES.items():
        folder = written(tmp_path, file)
        command, wanted = expected(file)
        assert config.guess_command(folder) == command, run
        params = config.load(folder, command)
        for name, field in type(params).model_fields.items():
            usual = field.get_default(call_default_factory=True)
            assert getattr(params, name) == wanted.get(name, usual), (run, name)
        assert wanted.keys() <= type(params).model_fields.keys()
        if command == "distill":
            assert params.resolved().ce_weight == pytest.approx(1 - 0.9)
        # The same from the dictionary, without a folder.
        assert config.validate(file, command, run) == params


SDB, NASTY = FILES["CIFAR10/smb-resnet10"], FILES["CIFAR10/kd_nasty_resnet18/nasty_resnet18"]
OURS = {"start": "teacher", "forward": "joint", "precision": "auto", "normalisation": "measured"}


@pytest.mark.parametrize("file", [SDB, NASTY], ids=["sdb", "nasty"])
def test_what_is_set_on_top_wins_and_does_not_change_what_the_file_is(tmp_path, file):
    """Under our names or theirs: a change of one parameter must not turn the rest of the run into another."""
    folder = written(tmp_path, file)
    plain = config.load(folder, "wrap").model_dump()
    renamed = {
        "adversarial_model": "teacher_model",
        "adversarial_resume": "teacher",
        "weight": "disturbance_weight",
    }
    renamed |= {"lamb": "key_blend", "eta": "augmentation_weight", "num_epochs": "epochs"}
    renamed = {theirs: ours for theirs, ours in renamed.items() if theirs in file}
    for count in (1, 2, len(renamed)):
        for names in itertools.combinations(renamed, count):
            values = [f"{renamed[name]}={json.dumps(file[name])}" for name in names]
            assert config.load(folder, "wrap", values).model_dump() == plain, names
    for name, value in {"start": "teacher", "forward": "joint", "precision": "bfloat16"}.items():
        changed = config.load(folder, "wrap", [f"{name}={value}"]).model_dump()
        assert changed == {**plain, name: value}
    assert config.load(folder, "wrap", ["method=decoy"]).start == "teacher"  # which is not the reference's


def test_what_a_published_file_leaves_open_is_as_in_training_and_never_fine_tuning(tmp_path):
    """Wherever the box starts: the reference's optimizer, and our training's defaults for the rest."""
    named = {"num_epochs": "epochs", "batch_size": "batch_size", "learning_rate": "learning_rate"}
    named |= {"schedule": "schedule"}
    for file in (SDB, NASTY):
        for theirs, ours in named.items():
            folder = written(tmp_path, {name: value for name, value in file.items() if name != theirs})
            params = config.load(folder, "wrap")
            assert getattr(params, ours) == config.TrainParams.model_fields[ours].default, theirs
            assert params.resolved_for("resnet18", False).learning_rate == 0.1
            assert config.load(folder, "wrap", ["start=teacher"]).optimizer == "auto"


def test_files_of_ours_are_left_as_they_are(tmp_path):
    ours = {"model_name": "net", "teacher": "t"}
    for method in ({}, {"method": "sdb"}, {"method": "nasty"}):
        folder = written(tmp_path, ours | method)
        params = config.load(folder, "wrap")
        assert {name: getattr(params, name) for name in OURS} == OURS
        assert config.inferred(folder, "wrap") == ()
    for more in ([], ["num_epochs=3"]):  # a name of theirs on top makes no file of theirs
        params = config.load(written(tmp_path, ours), "wrap", [*more, "adversarial_resume=x"])
        assert (params.method, params.start, params.teacher) == ("decoy", "teacher", Path("x"))


def test_check_says_what_was_inferred_and_why(tmp_path):
    def lines(file, command="wrap", sets=()):
        return " | ".join(config.inferred(written(tmp_path, file), command, sets))

    sdb, nasty = lines(SDB), lines(NASTY)
    assert "method=sdb: the file has lamb, which only SDB has" in sdb
    assert "start=scratch, forward=separate: as in SDB's train_smb.py" in sdb
    assert "precision=float32, normalisation=reference" in sdb
    assert "method=nasty: the file has adversarial_model, and neither lamb nor eta" in nasty
    assert "train_nasty.py" in nasty
    assert (
        "start" not in lines(NASTY, sets=["start=teacher"]).replace("start=teacher", "start").split("forward")[0]
    )
    assert "method=sdb: the file has eta" in lines(NASTY, sets=["eta=0.01"])
    assert config.guess(SDB) == ("wrap", "it has weight")
    student = FILES["CIFAR10/kd_normal_resnet18/cnn"]
    assert config.guess(student) == ("distill", "it has alpha")
    net = student | {"teacher_model": "net"}
    assert "teacher_args={num_channels: 32, dropout_rate: 0.0}" in lines(net, "distill")


def test_both_nets_of_a_file_have_its_arguments(tmp_path):
    """The reference gives its `net`, student or teacher, the one num_channels and dropout_rate of the file."""
    sizes = {"num_channels": 7, "dropout_rate": 0.2}
    theirs = {**FILES["CIFAR10/kd_normal_resnet18/cnn"], **sizes, "teacher_model": "net"}
    for student, own in (("net", sizes), ("resnet18", {}), ("mlp", {})):
        params = config.load(written(tmp_path, theirs | {"model_name": student}), "distill")
        assert (params.teacher_args, params.model_args) == (sizes, own), student
    wrap = config.load(
        written(tmp_path, NASTY | sizes | {"model_name": "net", "adversarial_model": "net"}), "wrap"
    )
    assert wrap.teacher_args == wrap.model_args == sizes
    # Where the teacher's own are named, or it is no net, they are the student's alone.
    assert config.load(
        written(tmp_path, theirs), "distill", ['teacher_args={"num_channels": 9}']
    ).teacher_args == {"num_channels": 9}
    assert config.load(written(tmp_path, theirs), "distill", ["teacher_model=resnet18"]).teacher_args == {}
    # A file of ours says each itself.
    ours = {"model_name": "net", **sizes, "teacher": "t", "teacher_model": "net"}
    assert config.load(written(tmp_path, ours), "distill").teacher_args == {}


def test_a_file_for_another_command_is_said_to_be_that(tmp_path):
    folders = {name: tmp_path / name for name in ("baseline", "wrap", "distill", "smooth", "decoy")}
    for folder in folders.values():
        folder.mkdir()
    student = FILES["CIFAR10/kd_normal_resnet18/cnn"]
    written(folders["baseline"], FILES["CIFAR10/baseline/cnn"])
    written(folders["wrap"], SDB)
    written(folders["distill"], student)
    written(folders["smooth"], {"model_name": "net", "label_smoothing": 0.1})
    written(folders["decoy"], {"model_name": "net", "teacher": "t", "margin": 2})
    for name, command, other, words in (
        ("wrap", "train", "wrap", "a wrap's file"),
        ("decoy", "train", "wrap", "a wrap's file"),
        ("decoy", "distill", "wrap", "a wrap's file"),
        ("wrap", "distill", "wrap", "a wrap's file"),
        ("distill", "train", "distill", "a student's file"),
        ("distill", "wrap", "distill", "a student's file"),
        ("smooth", "wrap", "train", "a training's file"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load(folders[name], command)
        message = str(caught.value)
        assert message == f"{folders[name] / 'params.json'}: this is {words}: sdb {other} {folders[name]}", name
    # What is merely wrong is still told by field, and so is what --set brings.
    with pytest.raises(ConfigError, match="teacher: is missing"):
        config.load(folders["baseline"], "wrap")
    with pytest.raises(ConfigError, match="margin: unknown"):
        config.load(folders["baseline"], "train", ["margin=1"])
    assert set(COMMANDS) == {"train", "wrap", "distill"}
