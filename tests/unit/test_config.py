"""Parameters: published files map to our fields, and every fault is named, all at once."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb import config
from sdb.config import ALIASES, COMMANDS, DistillSettings, Settings, TrainSettings, WrapSettings
from sdb.errors import ConfigError

# As published: JngwenYe/SDB, VITA-Group/Nasty-Teacher.
SDB_FILE = {
    "model_name": "resnet18",
    "learning_rate": 0.1,
    "schedule": [80, 120],
    "gamma": 0.1,
    "batch_size": 128,
    "num_epochs": 200,
    "num_workers": 4,
    "augmentation": 1,
    "cuda": 1,
    "dataset": "cifar10",
    "adversarial_model": "resnet18",
    "adversarial_resume": "experiments/CIFAR10/baseline/resnet18/best_model.tar",
    "temperature": 4,
    "weight": 1,
    "lamb": 0.9,
    "eta": 0.001,
}
NASTY_FILE = {k: v for k, v in SDB_FILE.items() if k not in ("lamb", "eta")} | {"num_epochs": 160, "weight": 0.04}
DISTILL_FILE = {
    "model_name": "net",
    "num_channels": 32,
    "dropout_rate": 0.0,
    "learning_rate": 1e-3,
    "schedule": [999],
    "gamma": 0.1,
    "batch_size": 128,
    "num_epochs": 100,
    "num_workers": 4,
    "augmentation": 1,
    "cuda": 1,
    "dataset": "cifar10",
    "teacher_model": "resnet18",
    "teacher_resume": "experiments/CIFAR10/baseline/resnet18/best_model.tar",
    "temperature": 4,
    "alpha": 0.9,
}
BASELINE_FILE = {k: SDB_FILE[k] for k in list(SDB_FILE)[:10]}


@pytest.fixture
def folder(tmp_path):
    def write(values):
        (tmp_path / "params.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return tmp_path

    return write


def fault(values, command="train", overrides=()):
    """The message with which parameters are refused."""
    with pytest.raises(ConfigError) as caught:
        config.validate(values, command, "params.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- published files -------------------------------------------------------------------------------------------------


def test_the_reference_s_sdb_file_runs_unchanged(folder):
    params = config.load(folder(SDB_FILE), "wrap")
    assert (params.method, params.model_name, params.dataset) == ("sdb", "resnet18", "cifar10")
    assert (params.epochs, params.batch_size, params.learning_rate) == (200, 128, 0.1)
    assert (params.schedule, params.schedule_factor) == ((80, 120), 0.1)
    assert (params.temperature, params.disturbance_weight) == (4, 1)
    assert (params.key_blend, params.augmentation_weight) == (0.9, 0.001)
    assert (params.teacher_model, str(params.teacher)) == ("resnet18", SDB_FILE["adversarial_resume"])
    assert params.augment is True
    assert params.device == "auto"


def test_nasty_teacher_s_file_runs_unchanged_as_nasty(folder):
    params = config.load(folder(NASTY_FILE), "wrap")
    assert (params.method, params.epochs, params.disturbance_weight) == ("nasty", 160, 0.04)
    assert params.key_blend is None


@pytest.mark.parametrize("name", ["lamb", "eta"])
def test_either_of_the_paper_s_own_parameters_makes_it_sdb(name):
    assert config.validate(NASTY_FILE | {name: 0.5}, "wrap", "x").method == "sdb"


def test_a_named_method_wins_over_the_guess():
    assert config.validate(NASTY_FILE | {"method": "sdb"}, "wrap", "x").method == "sdb"


def test_our_own_names_mean_decoy_unless_said_otherwise():
    assert config.validate({"model_name": "net", "teacher": "t"}, "wrap", "x").method == "decoy"


def test_the_distillation_file_runs_unchanged(folder):
    params = config.load(folder(DISTILL_FILE), "distill")
    assert params.model_name == "net"
    assert params.model_args == {"num_channels": 32, "dropout_rate": 0.0}
    assert (params.kd_temperature, params.kd_weight, params.loss) == (4, 0.9, "kd")
    assert params.ce_weight is None
    assert params.resolved().ce_weight == pytest.approx(0.1)
    assert (params.teacher_model, str(params.teacher)) == ("resnet18", DISTILL_FILE["teacher_resume"])
    assert params.schedule == (999,)


def test_the_baseline_file_runs_unchanged(folder):
    params = config.load(folder(BASELINE_FILE), "train")
    assert (params.epochs, params.schedule, params.optimizer) == (200, (80, 120), "auto")


@pytest.mark.parametrize(("cuda", "device"), [(1, "auto"), (0, "cpu"), (True, "auto"), (False, "cpu")])
def test_cuda_chooses_the_device(cuda, device):
    assert config.validate(BASELINE_FILE | {"cuda": cuda}, "train", "x").device == device


@pytest.mark.parametrize(("given_value", "augment"), [(0, False), (1, True), (False, False), (True, True)])
def test_augmentation_may_be_a_number_or_a_truth_value(given_value, augment):
    assert config.validate(BASELINE_FILE | {"augmentation": given_value}, "train", "x").augment is augment


@pytest.mark.parametrize(
    ("values", "command"),
    [(BASELINE_FILE, "train"), (SDB_FILE, "wrap"), (NASTY_FILE, "wrap"), (DISTILL_FILE, "distill")],
)
def test_the_command_of_a_file_is_told_from_its_fields(folder, values, command):
    assert config.guess_command(folder(values)) == command


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_stands_for_a_field_of_some_command(alias):
    assert any(ALIASES[alias] in model.model_fields for model in COMMANDS.values())


def test_temperature_is_the_student_s_where_a_student_is_distilled():
    values = {"model_name": "net", "teacher": "t", "temperature": 7}
    assert config.validate(values, "distill", "x").kd_temperature == 7
    assert config.validate(values, "wrap", "x").temperature == 7


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_come_in_one_message_with_field_value_and_nearest_name():
    message = fault(
        {"epochs": 0, "batch_size": "many", "learnig_rate": 0.1, "momentum": 1.5, "optimizer": "adagrad"}
    )
    assert message.startswith("params.json: ")
    for part in (
        "model_name: is missing",
        "epochs:",
        "got 0",
        'got "many"',
        "learnig_rate: unknown parameter, did you mean 'learning_rate'?",
        "got 1.5",
        'got "adagrad"',
        "'sgd'",
    ):
        assert part in message


def test_the_nearest_name_may_be_the_reference_s():
    assert "did you mean 'num_epochs'" in fault(BASELINE_FILE | {"num_epoch": 3})


def test_an_unknown_name_without_a_near_one_is_just_unknown():
    assert "zzzz: unknown parameter" in fault({"model_name": "net", "zzzz": 1})


def test_a_parameter_of_another_command_is_refused():
    assert "kd_weight: unknown parameter" in fault({"model_name": "net", "kd_weight": 1})
    assert "start: unknown" in fault({"model_name": "net", "teacher": "t", "start": "teacher"}, "distill")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", None),
        ("epochs", [3]),
        ("epochs", {"a": 1}),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "fast"),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("weight_decay", -1e-9),
        ("weight_decay", math.inf),
        ("schedule", "linear"),
        ("schedule", [-1]),
        ("schedule", [1.5]),
        ("schedule", 80),
        ("gamma", 0),
        ("clip_norm", 0),
        ("clip_norm", math.nan),
        ("precision", "float16"),
        ("augment", "perhaps"),
        ("augmentation", 2),
        ("label_smoothing", 1.0),
        ("seed", -1),
        ("device", 3),
        ("validation_fraction", 0),
        ("validation_fraction", 0.6),
        ("subset_percent", 0),
        ("subset_percent", 1.1),
        ("model_name", 3),
        ("model_args", 3),
        ("data_root", 3),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_by_name(name, value):
    message = fault({"model_name": "net", name: value})
    assert ALIASES.get(name, name) in message
    assert "got " in message


@pytest.mark.parametrize("name", ["key_blend", "lamb"])
@pytest.mark.parametrize("value", [0, 1.1, -0.5, math.nan, "half"])
def test_a_key_blend_out_of_range_is_refused(name, value):
    assert "key_blend" in fault({"model_name": "net", "teacher": "t", name: value}, "wrap")


def test_a_long_value_is_shown_shortened():
    message = fault({"model_name": "net", "epochs": "9" * 10_000 + "x"})
    assert len(message) < 400


@pytest.mark.parametrize(
    ("alias", "ours", "command"),
    [
        ("num_epochs", "epochs", "train"),
        ("weight", "disturbance_weight", "wrap"),
        ("alpha", "kd_weight", "distill"),
    ],
)
def test_an_alias_and_its_name_with_other_values_is_a_conflict(alias, ours, command):
    values = {"model_name": "net", "teacher": "t"} if command != "train" else {"model_name": "net"}
    message = fault(values | {alias: 1, ours: 2}, command)
    assert alias in message
    assert ours in message
    assert getattr(config.validate(values | {alias: 2, ours: 2}, command, "x"), ours) == 2


def test_a_second_name_for_the_same_file_with_another_value_is_a_conflict():
    message = fault(SDB_FILE | {"teacher_resume": "other.tar"}, "wrap")
    assert "adversarial_resume and teacher_resume" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"epochs": 1,\n  "batch_size" 3}', r"params\.json:2:16: not valid JSON"),
        ("", r"params\.json:1:1: not valid JSON"),
        ("[1, 2]", "holds list"),
        ('"text"', "holds str"),
        ("null", "holds NoneType"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(folder, text, expected):
    with pytest.raises(ConfigError, match=expected):
        config.load(folder(text), "train")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"epochs": ' + "9" * 5000 + "}"], ids=["deep", "digits"])
def test_a_file_that_json_cannot_hold_is_refused(folder, text):
    with pytest.raises(ConfigError, match=r"params\.json"):
        config.load(folder(text), "train")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "params.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path, "train")


def test_a_missing_file_is_named_with_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"params\.json: no such file, and no params\.toml; sdb init"):
        config.load(tmp_path, "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [*COMMANDS["wrap"].model_fields, *COMMANDS["distill"].model_fields, *ALIASES, "cuda", "num_channels"]
) | st.text(max_size=8)


@given(
    st.dictionaries(names | st.just("model_args.num_channels"), json_values, max_size=6),
    st.sampled_from([*COMMANDS]),
)
@settings(max_examples=200, deadline=None)
def test_any_json_object_is_taken_or_refused_with_a_config_error(values, command):
    try:
        params = config.validate({"model_name": "net", **values}, command, "params.json")
    except ConfigError:
        return
    assert isinstance(params, COMMANDS[command])


def test_a_part_and_its_whole_that_do_not_go_together_are_a_conflict():
    message = fault({"model_name": "net", "epochs.x": 1, "epochs": 2})
    assert "epochs.x and epochs are one parameter" in message


# --- --set -----------------------------------------------------------------------------------------------------------


def test_set_values_win_over_the_file(folder):
    params = config.load(
        folder({"model_name": "net", "epochs": 200, "schedule": "cosine"}),
        "train",
        ["epochs=3", "schedule=[1,2]", "device=cpu", "learning_rate=1e-3", "augment=false", "data_root=a=b"],
    )
    assert (params.epochs, params.schedule, params.device) == (3, (1, 2), "cpu")
    assert (params.learning_rate, params.augment, str(params.data_root)) == (0.001, False, "a=b")


@pytest.mark.parametrize("override", ["epochs=3", "num_epochs=3"])
@pytest.mark.parametrize("name", ["epochs", "num_epochs"])
def test_set_wins_by_either_name(folder, name, override):
    assert config.load(folder({"model_name": "net", name: 200}), "train", [override]).epochs == 3


@pytest.mark.parametrize("override", ["model_args.num_channels=8", "num_channels=8"])
@pytest.mark.parametrize(
    "in_file",
    [
        {"num_channels": 32, "dropout_rate": 0.2},
        {"model_args": {"num_channels": 32, "dropout_rate": 0.2}},
    ],
)
def test_set_changes_one_model_argument_and_keeps_the_others(folder, in_file, override):
    params = config.load(folder({"model_name": "net"} | in_file), "train", [override])
    assert params.model_args == {"num_channels": 8, "dropout_rate": 0.2}


def test_set_of_the_method_wins_over_the_guess(folder):
    assert config.load(folder(NASTY_FILE), "wrap", ["method=sdb"]).method == "sdb"
    assert config.load(folder(SDB_FILE), "wrap", ["method=nasty"]).method == "nasty"


def test_set_of_something_else_keeps_the_guess(folder):
    assert config.load(folder(NASTY_FILE), "wrap", ["epochs=1", "teacher_model=net"]).method == "nasty"
    assert config.load(folder(SDB_FILE), "wrap", ["key_blend=0.5", "augmentation_weight=0"]).method == "sdb"


def test_later_set_values_win(folder):
    assert config.load(folder({"model_name": "net"}), "train", ["epochs=3", "epochs=4"]).epochs == 4


@pytest.mark.parametrize("item", ["epochs", "=3", ""])
def test_a_set_value_without_name_or_value_is_refused(item):
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        config.parse_overrides([item])


@pytest.mark.parametrize("override", ["epochs.x=3", "model_args=3", "model_name.x=1", "nothing.x=1"])
def test_a_set_value_that_does_not_fit_is_refused_by_name(folder, override):
    written = folder({"model_name": "net", "epochs": 3, "num_channels": 4})
    with pytest.raises(ConfigError, match=override.partition("=")[0].partition(".")[0]):
        config.load(written, "train", [override])


# --- settings from Python --------------------------------------------------------------------------------------------


def test_settings_from_python_are_validated_too():
    with pytest.raises(ConfigError, match="epochs"):
        TrainSettings(epochs=0)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        WrapSettings(epoch=1)


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainSettings().epochs = 3


@pytest.mark.parametrize("model", [TrainSettings, WrapSettings, DistillSettings, *COMMANDS.values()])
def test_resolved_parameters_read_back_as_themselves(model):
    values = {"model_name": "net"} if "model_name" in model.model_fields else {}
    values |= {"teacher": "t"} if "teacher" in model.model_fields else {}
    made = model(schedule=(1, 2), **values)
    assert model(**json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("kd", (0.9, 0.1, 4.0)),
        ("dkd", (1.0, 1.0, 4.0)),
        ("dist", (2.0, 1.0, 4.0)),
        ("standardised_kd", (9.0, 0.1, 2.0)),
    ],
)
def test_a_loss_has_its_source_s_defaults(loss, expected):
    made = DistillSettings(loss=loss).resolved()
    assert (made.kd_weight, pytest.approx(made.ce_weight), made.kd_temperature) == expected


def test_given_weights_win_over_the_defaults():
    made = DistillSettings(kd_weight=0.25, kd_temperature=2).resolved()
    assert (made.kd_weight, made.ce_weight, made.kd_temperature) == (0.25, 0.75, 2)
    assert DistillSettings(kd_weight=1).resolved().ce_weight == 0
    assert DistillSettings(kd_weight=1, ce_weight=0.5).resolved().ce_weight == 0.5
    assert DistillSettings(loss="dkd", kd_weight=3).resolved().ce_weight == 1


def test_without_labels_there_is_no_cross_entropy():
    assert DistillSettings(labels=False, ce_weight=0.5).resolved().ce_weight == 0


def test_nothing_to_learn_is_refused():
    with pytest.raises(ConfigError, match="kd_weight and ce_weight"):
        DistillSettings(labels=False, kd_weight=0).resolved()


@pytest.mark.parametrize("model", COMMANDS.values())
def test_every_parameter_is_documented_in_the_source(model):
    import ast
    import inspect

    documented = set()
    for base in (b for b in model.__mro__ if issubclass(b, Settings) and b is not Settings):
        body = ast.parse(inspect.getsource(base).lstrip()).body[0].body
        for first, second in itertools.pairwise(body):
            if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr):
                documented.add(first.target.id)
    assert set(model.model_fields) <= documented


@pytest.mark.parametrize(
    ("values", "command"),
    [
        ({"model_name": "net"}, "train"),
        ({"model_name": "net", "label_smoothing": 0.1}, "train"),
        ({"teacher": "t", "kd_weight": 0.9}, "distill"),
        ({"teacher": "t", "views": 4}, "distill"),
        ({"teacher": "t", "label_smoothing": 0.1}, "distill"),
        ({"teacher": "t", "margin": 0.5}, "wrap"),
        ({"teacher": "t", "key": "key.json"}, "wrap"),
        ({"teacher": "boxed", "key": "boxed/key.json"}, "distill"),
        ({"teacher": "boxed/box"}, "distill"),
        ({"teacher_resume": "boxed/box"}, "distill"),
        ({"teacher": "a.box"}, "distill"),
    ],
)
def test_the_command_is_guessed_from_the_fields_or_from_the_teacher(tmp_path, monkeypatch, values, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxed" / "box").mkdir(parents=True)
    (tmp_path / "boxed" / "box" / "box.json").write_text("{}")
    (tmp_path / "a.box").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "params.json").write_text(json.dumps(values))
    assert config.guess_command(tmp_path / "run") == command


def test_parts_of_a_batch_are_equal():
    with pytest.raises(ConfigError, match="accumulation_steps: 3 does not divide batch_size 16"):
        TrainSettings(batch_size=16, accumulation_steps=3)
