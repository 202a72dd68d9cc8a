"""`sdb init` and `sdb params`: a parameter file to begin with, and what can be set; params.toml is read too."""

import json
import tomllib

import pytest

from sdb.config import COMMANDS, load
from sdb.config.params import defaults_of
from sdb.config.template import template
from sdb.errors import ConfigError
from sdb.runs.grid import find_runs

VALUES = {"model_name": "net", "teacher": "some/teacher"}


def values_for(command):
    return {
        name: value
        for name, value in VALUES.items()
        if name in COMMANDS[command].model_fields and (name != "teacher" or command != "train")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_comments_of_a_template_are_the_defaults(command, tmp_path):
    text = template(command, values_for(command))
    (tmp_path / "params.toml").write_text(text)
    as_written = load(tmp_path, command)
    bare = [line.removeprefix("#: ") for line in text.splitlines() if not line.endswith("sets it")]
    (tmp_path / "params.toml").write_text("\n".join(bare))
    assert load(tmp_path, command) == as_written == COMMANDS[command](**values_for(command))
    for name, value in defaults_of(command).items():
        said = f"# {name} is not set: {name} = VALUE sets it" if value is None else f"{name} = "
        # What another parameter chooses (a wrap's length, its method's weights) is shown as it is chosen.
        assert said in text or f"{name} = " in text or name == "teacher"
    assert "validation_fraction" in tomllib.loads("\n".join(bare))


def test_init_writes_a_file_that_is_good_for_its_command(tmp_path, quick_sdb):
    def sdb(*args):
        return quick_sdb(*args, cwd=tmp_path)

    (tmp_path / "teacher").mkdir()
    taught = {"model_name": "net", "model_args": {"num_channels": 4}, "dataset": "cifar10", "image_size": None}
    (tmp_path / "teacher" / "params.resolved.json").write_text(json.dumps(taught))
    for command, options in (
        ("train", ["--model", "resnet18", "--dataset", "cifar100"]),
        ("wrap", ["--teacher", "teacher"]),
        ("distill", ["--teacher", "some.box", "--model", "mlp"]),
    ):
        done = sdb("init", command, "--command", command, *options)
        assert done.returncode == 0, done.stderr
        assert f"sdb check {command}" in done.stderr and done.stdout == ""
        checked = sdb("check", command)
        assert checked.returncode == 0 and f"good for sdb {command}" in checked.stderr, checked.stderr
    assert "teacher: some.box is not there yet" in checked.stderr
    assert "teacher: teacher is" not in sdb("check", "wrap").stderr
    before = (tmp_path / "wrap" / "params.toml").read_bytes()
    own = sdb("init", "wrap", "--overwrite")
    assert own.returncode == 0 and "dataset is digits: set dataset and data_root to your own data" in own.stderr
    assert (tmp_path / "wrap" / "params.toml").read_bytes() != before
    (tmp_path / "wrap" / "params.toml").write_bytes(before)
    wrap = load(tmp_path / "wrap", "wrap")
    assert (wrap.model_args, wrap.dataset) == ({"num_channels": 4}, "cifar10")
    assert load(tmp_path / "train", "train").dataset == "cifar100"
    assert {run.command for run in find_runs([tmp_path])} == {"train", "wrap", "distill"}
    for args, says in (
        (["init", "wrap"], "exists"),
        (["init", "x", "--command", "wrapp"], "expected train, wrap, distill"),
        (["init", "x", "--command", "train", "--teacher", "t"], "--teacher"),
    ):
        refused = sdb(*args)
        assert refused.returncode == 2 and says in refused.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = ", "not valid TOML"),
        ("epochs = 0", "greater than or equal to 1"),
        ("lrate = 1", "unknown parameter"),
    ],
)
def test_bad_toml_is_refused_in_one_line(tmp_path, text, says):
    (tmp_path / "params.toml").write_text(f'model_name = "net"\n{text}\n')
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, "train")


def test_one_parameter_file_only(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file.*sdb init"):
        load(tmp_path, "train")
    (tmp_path / "params.toml").write_text('model_name = "net"\n')
    assert load(tmp_path, "train").model_name == "net"
    (tmp_path / "params.json").write_text('{"model_name": "mlp"}')
    with pytest.raises(ConfigError, match=r"params\.json and params\.toml"):
        load(tmp_path, "train")


def test_params_are_listed_with_values_default_and_help(tmp_path, quick_sdb):
    everything = quick_sdb("params", cwd=tmp_path).stdout
    for command, model in COMMANDS.items():
        listed = quick_sdb("params", command, cwd=tmp_path).stdout
        for name in model.model_fields:
            assert f"\n{name}  (" in f"\n{listed}" and f"\n{name}  (" in f"\n{everything}"
    one = quick_sdb("params", "num_epochs", cwd=tmp_path).stdout
    assert one.startswith(
        "epochs  (train, distill)  whole number >= 1; default: 200\n    Passes over the training images."
    )
    assert "\nepochs  (wrap)  whole number >= 1; default: 50\n" in one
    wrong = quick_sdb("params", "epoch", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'epochs'" in wrong.stderr
