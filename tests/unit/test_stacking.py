"""Many students in one loop: each gets what it would have got alone, in its weights and in its folder."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from sdb import config, jobs
from sdb.checkpoint import load_classifier, read_tensors
from sdb.config import DistillSettings, TrainSettings
from sdb.data import Batches
from sdb.distillation import distillation_step
from sdb.errors import ConfigError, ModelError, TrainingError
from sdb.grid import find_runs, results_of, run_grid, stacks_of
from sdb.jobs import JOBS, load_data
from sdb.keys import Owner
from sdb.models import Classifier
from sdb.optimizers import make_optimizer
from sdb.stacking import Stack, evaluate_stack, shared, stack_job, stacked_step
from sdb.tasks import Where
from sdb.training import cross_entropy_step, evaluate

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
COMMON = {
    "model_name": "net",
    "model_args": {"num_channels": 4, "dropout_rate": 0.0},
    "dataset": "digits",
    "subset_percent": 0.2,
    "epochs": 3,
    "batch_size": 64,
    # Few and short steps, without Adam: it makes steps of rounding errors, and so does batch norm over few pixels.
    "optimizer": "sgd",
    "learning_rate": 0.002,
    "schedule": "constant",
    "device": "cpu",
}
MLP = {"model_name": "mlp", "model_args": {}, "learning_rate": 0.02}
TENSORS = ("last.safetensors", "best.safetensors")


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(few, make_net):
    """A function that makes three classifiers of an architecture."""
    return lambda name="net", **arguments: [make_net(few, name, seed, **arguments) for seed in range(3)]


def some(data, count=16):
    return next(Batches(data.train, count).epoch(0)).images


@pytest.mark.parametrize("name", ["net", "mlp", "preresnet20", "shufflenetv2"])
def test_a_stack_answers_as_its_networks_do(few, three, name):
    networks, images = [each.double() for each in three(name)], some(few).double()
    stack, close = Stack(networks), {"rtol": 1e-9, "atol": 1e-9}
    for training in (True, False):
        stack.train(training)
        alone = torch.stack([each.train(training)(images) for each in networks])
        torch.testing.assert_close(stack(images), alone, **close)
    # Batch norm's statistics went the same way, and back into single networks.
    for one, other in zip(stack.unstack(), networks, strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), **close)
    if name == "net":
        assert stack.together.network.bn1.num_batches_tracked.tolist() == [1, 1, 1]


def test_making_a_stack_changes_nothing(few, three, weights_of, same_weights):
    networks = three()
    before = [weights_of(each) for each in networks]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    stack = Stack(networks)
    assert torch.equal(torch.rand(3), expected)
    assert all(same_weights(weights_of(each), old) for each, old in zip(stack.unstack(), before, strict=True))
    stack(some(few)).sum().backward()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += 1
    assert all(same_weights(weights_of(each), old) for each, old in zip(networks, before, strict=True))


def test_each_student_drops_units_of_its_own(few, make_net):
    twins = [make_net(few, dropout_rate=0.5) for _ in range(2)]
    stack, images = Stack(twins), some(few)
    first, second = stack.train()(images)
    assert first.shape == (16, 10)
    assert not torch.equal(first, second)
    first, second = stack.eval()(images)
    assert torch.equal(first, second)


def test_accuracies_are_those_of_each(few, three):
    networks, batches = three(), Batches(few.validation, 16)
    found = evaluate_stack(Stack(networks), batches)
    for number, network in enumerate(networks):
        mine = evaluate(network, batches)
        assert found[f"{number}/accuracy"] == mine["accuracy"]
        assert found[f"{number}/cross_entropy"] == pytest.approx(mine["cross_entropy"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(sum(found[f"{k}/accuracy"] for k in range(3)) / 3)


def test_networks_of_two_kinds_are_no_stack(few, make_net):
    with pytest.raises(ModelError, match="one architecture"):
        Stack([make_net(few), make_net(few, num_channels=8)])


class Crowd(nn.Module):
    """Answers by comparison with the other images of the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = self.linear(x.flatten(1))
        return out - out.mean(dim=0)


class Twice(nn.Module):
    """One layer, used in two places; two layers that share a weight."""

    def __init__(self, tied):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64) if tied else self.first
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.second(torch.relu(self.first(x.flatten(1)))))


def classifiers(few, make_net, *networks):
    made = [Classifier(each, few.mean, few.std, 10, few.image_shape) for each in networks]
    for each in made:
        each.spec = make_net(few).spec
    return made


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Crowd, "Crowd cannot be stacked, since it does not treat images one by one: train these"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)),
            "1: LayerNorm has no stacked form",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 10, 8, padding_mode="circular"), nn.Flatten()), "0: Conv2d has no"),
        (lambda: Twice(tied=True), "two layers share a weight"),
    ],
)
def test_a_network_that_cannot_be_stacked_is_refused(few, make_net, build, says):
    with pytest.raises(ModelError, match=says):
        Stack(classifiers(few, make_net, build(), build()))


def test_a_layer_that_is_used_twice_is_stacked_once(few, make_net):
    networks = classifiers(few, make_net, Twice(tied=False), Twice(tied=False))
    stack, images = Stack(networks), some(few)
    torch.testing.assert_close(stack(images), torch.stack([each(images) for each in networks]), **CLOSE)
    assert len(list(stack.parameters())) == 4


def test_a_teacher_of_several_is_asked_once_for_each_batch(few):
    asked = []
    ask = shared(lambda batch: asked.append(batch) or torch.zeros(len(batch.labels), 10))
    step = stacked_step([lambda forward, batch: {"term": (forward(batch.images) - ask(batch)).sum()}] * 3)
    batches = list(Batches(few.train, 16).epoch(0))
    for batch in batches:
        terms = step(
            lambda images: torch.stack([torch.full((len(images), 10), float(k)) for k in range(3)]), batch
        )
        assert {name: float(term) for name, term in terms.items()} == {"0/term": 0, "1/term": 160, "2/term": 320}
    assert [id(batch) for batch in asked] == [id(batch) for batch in batches]


@pytest.mark.parametrize("name", ["net", "mlp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_in_double_precision_each_student_gets_the_steps_it_gets_alone(few, three, name, optimizer):
    """Where rounding cannot hide a difference, nor Adam make steps of it."""
    networks = [each.double().train() for each in three(name)]
    stack = Stack(networks)
    settings = TrainSettings(optimizer=optimizer, learning_rate=0.01)
    teacher = three(name)[2].double().eval().requires_grad_(False)
    steps = [
        cross_entropy_step(TrainSettings(label_smoothing=0.1)),
        distillation_step(lambda batch: teacher(batch.images), DistillSettings().resolved()),
        distillation_step(lambda batch: teacher(batch.images), DistillSettings(loss="dist").resolved()),
    ]
    optimizers = [make_optimizer([each], settings) for each in (stack, *networks)]
    for epoch in range(3):
        for batch in Batches(few.train, 16, shuffle=True, seed=1).epoch(epoch):
            batch = batch._replace(images=batch.images.double())
            for each in optimizers:
                each.zero_grad()
            sum(stacked_step(steps)(stack, batch).values()).backward()
            for step, network in zip(steps, networks, strict=True):
                sum(step(network, batch).values()).backward()
            for each in optimizers:
                each.step()
    for one, other in zip(stack.unstack(), networks, strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=1e-6, atol=1e-6)


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that holds a teacher, a box and its key; always the same."""
    place = tmp_path_factory.mktemp("made")
    owner, files = Owner(bytes(32)), {name: place / f"{name}.json" for name in ("owner", "key")}
    owner.save(files["owner"])
    owner.partner("a", "weight").save(files["key"])
    run(JOBS["train"], place / "teacher", "train", COMMON)
    values = COMMON | {name: str(file) for name, file in files.items()}
    run(JOBS["wrap"], place / "box", "wrap", values | {"teacher": str(place / "teacher"), "epochs": 1})
    return place


def run(job, folder, command, values, **flags):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(values))
    given = {"resume": False, "overwrite": False, "progress": None} | flags
    return job(folder, config.validate(values, command, str(folder)), **given)


def students(made, **changes):
    """What three students are made with: alone, a thief, a partner of another loss."""
    taught = COMMON | {"teacher": str(made / "box")} | changes
    return {
        "alone": ("train", COMMON | changes | {"label_smoothing": 0.1}),
        "thief": ("distill", taught | {"kd_weight": 0.9}),
        "partner": (
            "distill",
            taught | {"key": str(made / "key.json"), "loss": "dkd", "label_smoothing": 0.1},
        ),
    }


def alone(place, wanted, **flags):
    return {name: run(JOBS[c], place / name, c, values, **flags) for name, (c, values) in wanted.items()}


def together(place, wanted, **flags):
    members = []
    for name, (command, values) in wanted.items():
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / "params.json").write_text(json.dumps(values))
        members.append((command, place / name, config.validate(values, command, name)))
    found = stack_job(members, **{"resume": False, "overwrite": False, "progress": None} | flags)
    return dict(zip(wanted, found, strict=True))


def last_loss(folder):
    return read_tensors(folder / "last.safetensors")[1]["history"][-1]["loss"]


def without_time(value):
    if isinstance(value, dict):
        return {name: without_time(each) for name, each in value.items() if name != "seconds"}
    return [without_time(each) for each in value] if isinstance(value, list) else value


def flat(value, place=""):
    """Every number and text of a JSON value, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {place: value}
    return {path: leaf for key, each in items for path, leaf in flat(each, f"{place}/{key}").items()}


def same_folders(first, second):
    """Whether two runs left the same, within rounding; the folders' own names aside."""
    names = {path.name for path in first.iterdir() if not path.name.startswith("events")}
    assert names == {path.name for path in second.iterdir() if not path.name.startswith("events")}
    assert len(list(second.glob("events*"))) >= 1
    for name in TENSORS:
        (tensors, header), (others, other_header) = (read_tensors(folder / name) for folder in (first, second))
        torch.testing.assert_close(others, tensors, **CLOSE)
        mine, its = (flat(without_time(each)) for each in (header, other_header))
        numbers = {place for place, value in mine.items() if isinstance(value, float)}
        assert [its[place] for place in numbers] == pytest.approx([mine[place] for place in numbers], rel=1e-3)
        assert {p: v for p, v in its.items() if p not in numbers} == {
            p: v for p, v in mine.items() if p not in numbers
        }
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (first, second)]
    assert len(lines[0]) == len(lines[1])
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert list(results[0]) == list(results[1])
    assert results[1] == pytest.approx(results[0], abs=1e-9)
    resolved = [json.loads((folder / "params.resolved.json").read_text()) for folder in (first, second)]
    assert resolved[0] == resolved[1]


@pytest.mark.parametrize("changes", [{}, MLP, MLP | {"accumulation_steps": 2}], ids=["net", "mlp", "mlp in parts"])
def test_students_in_a_stack_are_those_trained_alone(made, tmp_path, changes):
    wanted = students(made, **changes)
    found, expected = together(tmp_path / "stack", wanted), alone(tmp_path / "alone", wanted)
    for name in wanted:
        assert found[name] == pytest.approx(expected[name])
        same_folders(tmp_path / "alone" / name, tmp_path / "stack" / name)
    # They are three, not one.
    last = [read_tensors(tmp_path / "stack" / name / "last.safetensors")[0] for name in wanted]
    assert not any(
        torch.equal(last[0]["model.network.fc1.weight"], each["model.network.fc1.weight"]) for each in last[1:]
    )
    # What was kept is what was judged.
    name = "thief"
    params = config.validate(wanted[name][1], "distill", name)
    kept = load_classifier(tmp_path / "stack" / name)
    assert jobs.test_accuracy(kept, load_data(params, 0)) == found[name]["accuracy"]


def test_with_adam_students_learn_the_same(tmp_path):
    better = COMMON | {"optimizer": "adam", "learning_rate": 0.005, "epochs": 12, "subset_percent": 0.5}
    better["schedule"] = "cosine"
    better["model_args"] = {"num_channels": 8}
    wanted = {str(share): ("train", better | {"label_smoothing": share}) for share in (0.0, 0.1)}
    found, expected = together(tmp_path / "stack", wanted), alone(tmp_path / "alone", wanted)
    for name in wanted:
        losses = [last_loss(tmp_path / kind / name) for kind in ("stack", "alone")]
        assert losses[0] == pytest.approx(losses[1], rel=0.1)
        assert found[name]["accuracy"] == pytest.approx(expected[name]["accuracy"], abs=0.04)
        assert found[name]["accuracy"] > 0.85


@pytest.mark.parametrize("changes", [{"augment": False}, {"views": 2}])
def test_views_that_repeat_are_asked_about_once_in_a_stack_too(made, tmp_path, changes):
    wanted = {name: each for name, each in students(made, **changes).items() if name != "alone"}
    together(tmp_path / "stack", wanted)
    alone(tmp_path / "alone", wanted)
    for name in wanted:
        same_folders(tmp_path / "alone" / name, tmp_path / "stack" / name)


def test_each_log_hears_of_its_own_run(made, tmp_path):
    together(tmp_path, students(made, epochs=1))
    for name in ("alone", "thief", "partner"):
        lines = (tmp_path / name / "training.log").read_text().splitlines()
        assert ["parameters {" in line for line in lines] == [True, False]
        assert "epoch 1: loss" in lines[1]


def command(*words):
    """Run `sdb` as a user does."""
    done = subprocess.run([sys.executable, "-m", "sdb", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


# --- stopped and gone on with ----------------------------------------------------------------------------------------


def test_a_stack_that_went_on_is_the_one_that_never_stopped(made, tmp_path):
    together(tmp_path / "whole", students(made))
    together(tmp_path / "broken", students(made, epochs=1))
    together(tmp_path / "broken", students(made), resume=True)
    for name in students(made):
        tensors = [read_tensors(tmp_path / kind / name / "last.safetensors")[0] for kind in ("whole", "broken")]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][each], tensors[1][each]) for each in tensors[0])
        same_folders(tmp_path / "whole" / name, tmp_path / "broken" / name)
        log = (tmp_path / "broken" / name / "training.log").read_text()
        assert log.count("resumed after epoch 1") == 1


def test_a_student_of_a_stack_may_go_on_alone_and_one_begun_alone_in_a_stack(made, tmp_path):
    wanted = students(made)
    alone(tmp_path / "alone", wanted)
    together(tmp_path / "parted", students(made, epochs=1))
    command("distill", str(tmp_path / "parted/thief"), "--resume", "--set", "epochs=3")
    alone(tmp_path / "parted", {name: each for name, each in wanted.items() if name != "thief"}, resume=True)
    alone(tmp_path / "met", students(made, epochs=1))
    together(tmp_path / "met", wanted, resume=True)
    for name in wanted:
        for kind in ("parted", "met"):
            same_folders(tmp_path / "alone" / name, tmp_path / kind / name)


def test_students_at_different_epochs_finish_apart(made, tmp_path, monkeypatch):
    wanted = students(made)
    alone(tmp_path / "alone", wanted)
    begun = {name: students(made, epochs=1)[name] for name in ("thief",)}
    alone(tmp_path / "some", begun)
    sizes = []
    build = Stack.__init__
    monkeypatch.setattr(Stack, "__init__", lambda self, given: sizes.append(len(given)) or build(self, given))
    together(tmp_path / "some", wanted, resume=True)
    assert sizes == [2]  # the two that had not begun
    for name in wanted:
        same_folders(tmp_path / "alone" / name, tmp_path / "some" / name)


def test_a_student_that_diverges_stops_the_stack_and_is_named(made, tmp_path):
    wanted = students(made)
    wanted["thief"][1]["learning_rate"] = wanted["alone"][1]["learning_rate"] = 1e30
    del wanted["partner"]
    with pytest.raises(TrainingError, match=r"epoch 1, .*loss term .*1/distillation.* is not finite"):
        together(tmp_path / "wild", wanted)
    assert not (tmp_path / "wild/thief/last.safetensors").exists()
    assert "stopped: TrainingError" in (tmp_path / "wild/thief/training.log").read_text()


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "change", "says"),
    [
        (("alone", "thief"), {"clip_norm": 1}, "clip_norm: 1; it would cut the gradient of all students together"),
        (("thief",), {"epochs": 9}, "thief: epochs is 9, and 3 in "),
        (("thief",), {"seed": 4}, "thief: seed is 4, and 0 in "),
        (("thief",), {"model_args": {"num_channels": 8}}, "model_args is .*8"),
        (("thief",), {"subset_percent": 0.5}, "subset_percent is 0.5"),
        (("thief",), {"views": 2}, "views is 2, and None in "),
        (("thief",), {"teacher": None, "teacher_url": "http://127.0.0.1:1/v2/models/m"}, "teacher_url: "),
    ],
)
def test_what_cannot_be_one_stack_is_refused(made, tmp_path, which, change, says):
    wanted = {name: each for name, each in students(made).items() if name != "partner"}
    for name in which:
        wanted[name] = (wanted[name][0], wanted[name][1] | change)
    with pytest.raises(ConfigError, match=says):
        together(tmp_path, wanted)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["params.json"] * 2


def test_a_box_and_a_single_student_are_no_stack(made, tmp_path):
    wanted = students(made)
    with pytest.raises(ConfigError, match="two students or more, not 1"):
        together(tmp_path, {"thief": wanted["thief"]})
    with pytest.raises(ConfigError, match="command: wrap; only train and distill make students"):
        together(tmp_path, {**wanted, "box": ("wrap", COMMON | {"teacher": str(made / "teacher")})})
    member = ("train", tmp_path, config.validate(COMMON, "train", "here"))
    with pytest.raises(ConfigError, match="have one folder"):
        stack_job([member, member], resume=False, overwrite=False, progress=None)


def test_a_run_that_is_there_is_kept_or_discarded_as_asked(made, tmp_path):
    wanted = students(made, epochs=1)
    together(tmp_path, wanted)
    before = (tmp_path / "thief/result.json").read_bytes()
    with pytest.raises(FileExistsError, match="already holds a run"):
        together(tmp_path, wanted)
    assert (tmp_path / "thief/result.json").read_bytes() == before
    together(tmp_path, students(made, batch_size=32, epochs=1), overwrite=True)
    assert len((tmp_path / "thief/metrics.jsonl").read_text().splitlines()) == 1


# --- other precisions ------------------------------------------------------------------------------------------------


def test_a_stack_trains_in_bfloat16(made, tmp_path):
    wanted = students(made, precision="bfloat16", epochs=1)
    found, expected = together(tmp_path / "stack", wanted), alone(tmp_path / "alone", wanted)
    for name in wanted:
        losses = [last_loss(tmp_path / kind / name) for kind in ("stack", "alone")]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        assert math.isclose(found[name]["accuracy"], expected[name]["accuracy"], abs_tol=0.05)


def test_activations_may_be_computed_again(made, tmp_path):
    changes = {"model_name": "preresnet20", "model_args": {}, "subset_percent": 0.1, "epochs": 1, "batch_size": 32}
    wanted = {
        name: each
        for name, each in students(made, activation_checkpointing=True, **changes).items()
        if name != "alone"
    }
    together(tmp_path / "stack", wanted)
    for _, values in wanted.values():
        values["activation_checkpointing"] = False
    alone(tmp_path / "alone", wanted)
    for name in wanted:
        tensors = [read_tensors(tmp_path / kind / name / "last.safetensors")[0] for kind in ("stack", "alone")]
        torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_stack_is_the_same(made, tmp_path):
    plain, compiled = (students(made, epochs=1, compile=mode) for mode in ("off", "default"))
    together(tmp_path / "plain", plain)
    together(tmp_path / "compiled", compiled)
    for name in plain:
        tensors = [read_tensors(tmp_path / kind / name / "last.safetensors")[0] for kind in ("plain", "compiled")]
        torch.testing.assert_close(tensors[1], tensors[0], rtol=1e-3, atol=1e-4)


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(made, tmp_path):
    """A function that writes a grid of eight runs, four of which need others, and returns it."""

    def write(name):
        place = tmp_path / name
        values = {
            "a_teacher": COMMON | {"model_args": {"num_channels": 8, "dropout_rate": 0.0}},
            "alone": COMMON,
            "smoothed": COMMON | {"label_smoothing": 0.1},
            "large": COMMON | {"model_name": "resnet18", "model_args": {}, "epochs": 1, "subset_percent": 0.02},
            "from_box": COMMON | {"teacher": str(made / "box"), "kd_weight": 0.9},
            "from_teacher": COMMON | {"teacher": str(place / "a_teacher"), "kd_weight": 0.9},
            "softly": COMMON | {"teacher": str(place / "a_teacher"), "kd_weight": 0.5, "kd_temperature": 2.0},
            "cut": COMMON | {"teacher": str(place / "a_teacher"), "kd_weight": 0.5, "clip_norm": 1.0},
        }
        for each, parameters in values.items():
            (place / each).mkdir(parents=True)
            (place / each / "params.json").write_text(json.dumps(parameters))
        return find_runs([place])

    return write


def names_of(groups):
    return {tuple(each.folder.name for each in group) for group in groups}


def test_runs_of_a_grid_are_stacked_where_they_can_be(grid):
    found = grid("g")
    assert names_of(stacks_of(found)) == {
        ("a_teacher",),  # another width
        ("alone", "from_box", "smoothed"),  # what these need is there already
        ("from_teacher", "softly"),  # these need the teacher
        ("cut",),
        ("large",),
    }
    # Every network has the teacher's width, but a teacher and its students are no stack.
    assert ("a_teacher", "alone", "from_box", "smoothed") in names_of(stacks_of(found, ["num_channels=4"]))
    assert all(len(group) == 1 for group in stacks_of(found, ["clip_norm=1"]))


def test_large_stacks_are_divided_evenly(tmp_path):
    for number in range(11):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}/params.json").write_text(json.dumps(COMMON | {"label_smoothing": number / 100}))
    groups = stacks_of(find_runs([tmp_path]))
    assert sorted(len(group) for group in groups) == [5, 6]
    assert len({each.name for group in groups for each in group}) == 11


def test_a_grid_with_stacks_finds_the_same(grid):
    plain, stacked, told = grid("plain"), grid("stacked"), []
    run_grid(plain, Where(), told=lambda *_: None)
    run_grid(stacked, Where(), stack=True, told=lambda *each: told.append(each))
    assert [each[:2] for each in told] == [(number, 5) for number in range(1, 6)]
    for one, other in zip(results_of(plain).values(), results_of(stacked).values(), strict=True):
        assert other == pytest.approx(one)
    # Nothing is left to be done, in a stack or not; a table comes of it all the same.
    assert "accuracy" in command("grid", str(stacked[0].folder.parent), "--stack", "--workers", "1").stderr
    run_grid(stacked, Where(), told=lambda *each: told.append(each))
    assert len(told) == 5


def test_a_bad_run_in_a_stack_of_a_grid_costs_only_itself(made, tmp_path):
    wanted = students(made)
    wanted["diverges"] = ("distill", wanted["thief"][1] | {"kd_weight": 1e38, "ce_weight": 1e38})
    wanted["orphan"] = ("distill", wanted["thief"][1] | {"teacher": str(tmp_path / "nowhere")})
    for name, (_, values) in wanted.items():
        (tmp_path / "g" / name).mkdir(parents=True)
        (tmp_path / "g" / name / "params.json").write_text(json.dumps(values))
    runs = find_runs([tmp_path / "g"])
    assert [len(group) for group in stacks_of(runs)] == [5]
    with pytest.raises(TrainingError, match=r"diverges: .* is not finite.*orphan: .*nowhere"):
        run_grid(runs, Where(), stack=True, told=lambda *_: None)
    found = {each.folder.name: result for each, result in zip(runs, results_of(runs).values(), strict=True)}
    assert {name for name, result in found.items() if result is None} == {"diverges", "orphan"}
    alone(tmp_path / "alone", {name: wanted[name] for name in ("thief",)})
    same_folders(tmp_path / "alone/thief", tmp_path / "g/thief")
