"""The training loop: schedule, guards, evaluation, and the same result from two processes as from one."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdb.config import TrainSettings
from sdb.data import Batches, ImageSet
from sdb.errors import ConfigError, TrainingError
from sdb.models.checkpoint import load_classifier, read_tensors
from sdb.runs.folder import LAST, METRICS, open_run
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import best_epoch, fit, train, train_batches
from sdb.training.optimizers import learning_rate_at, make_optimizer, resolved

CPU = torch.device("cpu")
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}


# --- schedule and optimizer ------------------------------------------------------------------------------------------


def test_constant_schedule():
    chosen = TrainSettings(learning_rate=0.1, schedule="constant")
    assert [learning_rate_at(chosen, epoch) for epoch in (0, 1, 199)] == [0.1, 0.1, 0.1]


def test_cosine_schedule_falls_from_the_rate_towards_zero():
    chosen = TrainSettings(learning_rate=0.1, epochs=10, schedule="cosine")
    rates = [learning_rate_at(chosen, epoch) for epoch in range(10)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.1 * (1 + math.cos(0.9 * math.pi)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_step_schedule_is_that_of_torch():
    chosen = TrainSettings(learning_rate=0.1, schedule=(3, 5, 5), schedule_factor=0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5], gamma=0.2)
    for epoch in range(8):
        assert learning_rate_at(chosen, epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_every_epoch_is_trained_at_its_rate(few, make_net):
    chosen = TrainSettings(**{**QUICK, "epochs": 3}, schedule=(1, 2))
    history = train(make_net(few), few, chosen)
    assert [record["learning_rate"] for record in history] == pytest.approx([0.01, 0.001, 0.0001])


@pytest.mark.parametrize(("name", "kind"), [("net", "Adam"), ("mlp", "Adam"), ("preresnet20", "SGD")])
def test_the_automatic_optimizer_is_the_reference_s(few, make_net, name, kind):
    optimizer = make_optimizer([make_net(few, name)], TrainSettings())
    assert type(optimizer).__name__ == kind
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == (5e-4 if kind == "SGD" else 0)
    assert group.get("momentum") == (0.9 if kind == "SGD" else None)


def test_a_named_optimizer_wins(few, make_net):
    assert type(make_optimizer([make_net(few)], TrainSettings(optimizer="sgd"))).__name__ == "SGD"
    assert type(make_optimizer([make_net(few, "preresnet20")], TrainSettings(optimizer="adam"))).__name__ == "Adam"


def test_frozen_parameters_are_not_trained(few, make_net):
    model = make_net(few)
    model.network.conv1.weight.requires_grad_(False)
    before = model.network.conv1.weight.detach().clone()
    train(model, few, TrainSettings(**QUICK))
    assert torch.equal(model.network.conv1.weight, before)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_auto_precision_is_float32_on_a_cpu(precision):
    settings = TrainSettings(precision=precision, device="cpu", learning_rate=0.1)
    expected = "float32" if precision == "auto" else precision
    assert resolved(settings, torch.nn.Linear(2, 2)).precision == expected


def test_bfloat16_trains_float32_weights_to_other_values(few, make_net):
    models = [make_net(few), make_net(few)]
    for model, precision in zip(models, ("float32", "bfloat16"), strict=True):
        train(model, few, TrainSettings(precision=precision, **QUICK))
    weights = [model.network.fc2.weight for model in models]
    assert weights[1].dtype == torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0.1)


# --- one step --------------------------------------------------------------------------------------------------------


def one_step(data, model, **changes):
    chosen = TrainSettings(
        **{
            "epochs": 1,
            "batch_size": len(data.train),
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "schedule": "constant",
            "augment": False,
        }
        | changes
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, data, chosen)
    return [(b - a.detach()) for b, a in zip(before, model.parameters(), strict=True)]


def gradient_of(data, model, smoothing=0.0):
    images, labels = torch.from_numpy(data.train.images).float() / 255, torch.from_numpy(data.train.labels)
    loss = F.cross_entropy(model.train()(images), labels, label_smoothing=smoothing)
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_follows_the_gradient_of_the_smoothed_cross_entropy(few, make_net, smoothing):
    moved = one_step(few, make_net(few, "mlp"), label_smoothing=smoothing)
    for change, gradient in zip(moved, gradient_of(few, make_net(few, "mlp"), smoothing), strict=True):
        torch.testing.assert_close(change, gradient, rtol=1e-4, atol=1e-6)


def test_clipping_shortens_the_gradient_and_keeps_its_direction(few, make_net):
    gradient = torch.cat([g.flatten() for g in gradient_of(few, make_net(few, "mlp"))])
    limit = float(gradient.norm()) / 3
    clipped = torch.cat([m.flatten() for m in one_step(few, make_net(few, "mlp"), clip_norm=limit)])
    assert float(clipped.norm()) == pytest.approx(limit, rel=1e-3)
    torch.testing.assert_close(clipped, gradient / 3, rtol=1e-3, atol=1e-6)


def test_a_short_gradient_is_not_clipped(few, make_net):
    free, clipped = (one_step(few, make_net(few, "mlp"), clip_norm=limit) for limit in (None, 1e6))
    assert all(torch.equal(a, b) for a, b in zip(free, clipped, strict=True))


def test_the_loss_of_an_epoch_is_the_sum_of_its_terms_means(few, make_net):
    def step(forward, batch):
        base = F.cross_entropy(forward(batch.images), batch.labels)
        return {"base": base, "two": base.detach() * 0 + 2, "minus": base.detach() * 0 - 0.5}

    record = fit_with(step, few, make_net(few))[0]
    assert record["terms"]["two"] == 2
    assert record["terms"]["minus"] == -0.5
    assert record["loss"] == pytest.approx(record["terms"]["base"] + 1.5)


def fit_with(step, data, model, run=None, **changes):
    chosen = TrainSettings(**{**QUICK, **changes})
    batches = train_batches(data, chosen, CPU)
    return fit(model, step, batches, chosen, evaluate=lambda: {"accuracy": 0.5}, monitor="accuracy", run=run)


@pytest.mark.parametrize("start_mode", [True, False])
def test_training_happens_in_train_mode_and_ends_in_eval_mode(few, make_net, start_mode):
    model, seen = make_net(few).train(start_mode), []

    def step(forward, batch):
        seen.append(forward.training)
        return {"loss": F.cross_entropy(forward(batch.images), batch.labels)}

    fit_with(step, few, model)
    assert set(seen) == {True}
    assert not any(module.training for module in model.modules())


class Told:
    def __init__(self):
        self.calls = []

    def start(self, epochs, first, steps):
        self.calls.append(("start", epochs, first, steps))

    def step(self):
        self.calls.append("step")

    def epoch(self, record):
        self.calls.append(record["epoch"])

    def close(self):
        self.calls.append("close")


def test_progress_is_told_of_every_step_and_epoch(few, make_net):
    told = Told()
    train(make_net(few), few, TrainSettings(**QUICK), progress=told)
    assert told.calls == [("start", 2, 0, 3), "step", "step", "step", 1, "step", "step", "step", 2, "close"]


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad_epoch", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(
    tmp_path, few, make_net, weights_of, same_weights, value, bad_epoch
):
    steps = []

    def step(forward, batch):
        steps.append(1)
        good = F.cross_entropy(forward(batch.images), batch.labels)
        broken = value if len(steps) > 3 * bad_epoch + 1 else 1.0  # in the second step of the epoch
        return {"good": good, "disturbance": good.detach() * 0 + broken}

    model, folder = make_net(few), tmp_path / "run"
    with (
        pytest.raises(
            TrainingError, match=rf"epoch {bad_epoch + 1}, .*disturbance is not finite.*learning_rate"
        ) as caught,
        open_run(folder, {}, CPU) as run,
    ):
        fit_with(step, few, model, run=run)
    assert "good" not in str(caught.value)
    assert (folder / LAST).exists() == (bad_epoch == 1)
    if bad_epoch:
        tensors, header = read_tensors(folder / LAST)
        assert len(header["history"]) == 1
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
        assert load_classifier(folder).spec == model.spec
    assert "stopped: TrainingError" in (folder / "training.log").read_text()


def test_a_rate_that_makes_the_weights_explode_is_reported(few, make_net):
    with pytest.raises(TrainingError, match="cross_entropy is not finite"):
        train(
            make_net(few, "mlp"), few, TrainSettings(optimizer="sgd", epochs=3, batch_size=16, learning_rate=1e30)
        )


# --- batches and evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "steps"), [(16, 3), (20, 2), (47, 1), (48, 1), (49, 1), (1000, 1)])
def test_a_last_batch_that_is_not_full_is_left_out_unless_it_is_the_only_one(few, batch_size, steps):
    batches = train_batches(few, TrainSettings(batch_size=batch_size), CPU)
    sizes = [len(batch.labels) for batch in batches.epoch(0)]
    assert len(batches) == len(sizes) == steps
    assert set(sizes) == {min(batch_size, 48)}


def test_training_batches_follow_the_seed_and_the_switch_for_augmentation(few):
    def images(**changes):
        batches = train_batches(few, TrainSettings(batch_size=48, **changes), CPU)
        return next(batches.epoch(0))

    assert torch.equal(images().images, images().images)
    assert not torch.equal(images().index, images(seed=1).index)
    plain = images(augment=False)
    assert torch.equal(plain.images, torch.from_numpy(few.train.images[plain.index.numpy()]).float() / 255)
    assert not torch.equal(images().images, plain.images)


@pytest.mark.parametrize("batch_size", [1, 7, 130, 512])
def test_accuracy_is_over_all_images_whatever_the_batches(digits, make_net, batch_size):
    model = make_net(digits).eval()
    images = torch.from_numpy(np.asarray(digits.validation.images)).float() / 255
    labels = torch.from_numpy(digits.validation.labels)
    with torch.no_grad():
        logits = model(images)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    found = evaluate(model, Batches(digits.validation, batch_size))
    assert found["accuracy"] == right / 130
    assert found["cross_entropy"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_evaluation_batches_cover_every_image_once_in_order(digits):
    index = torch.cat([batch.index for batch in evaluation_batches(digits.test, CPU).epoch(0)])
    assert torch.equal(index, torch.arange(500))


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_is_in_eval_mode_and_puts_the_mode_back(few, make_net, weights_of, same_weights, mode):
    model = make_net(few, dropout_rate=0.5).train(mode)
    before = weights_of(model)
    results = [evaluate(model, evaluation_batches(few.test, CPU)) for _ in range(2)]
    assert results[0] == results[1]
    assert model.training is mode
    assert same_weights(weights_of(model), before)


def test_no_images_to_evaluate_on_is_an_error(few, make_net):
    nothing = ImageSet(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(ConfigError, match="no images"):
        evaluate(make_net(few), evaluation_batches(nothing, CPU))


def test_selection_never_sees_test_images(few, make_net):
    black = ImageSet(np.zeros_like(few.test.images), few.test.labels)
    histories = [train(make_net(few), data, TrainSettings(**QUICK)) for data in (few, replace(few, test=black))]
    assert [r["validation"] for r in histories[0]] == [r["validation"] for r in histories[1]]


def test_the_best_epoch_is_the_first_of_equals():
    history = [{"epoch": n + 1, "validation": {"accuracy": value}} for n, value in enumerate((0.1, 0.7, 0.3, 0.7))]
    assert best_epoch(history, "accuracy")["epoch"] == 2


def test_training_learns(digits, make_net):
    history = train(
        make_net(digits, num_channels=8),
        digits,
        TrainSettings(epochs=12, batch_size=32, learning_rate=0.01, optimizer="adam"),
    )
    assert history[-1]["validation"]["accuracy"] > 0.8


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(few, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="batch_size: 15 does not divide among 2 processes"):
        train_batches(few, TrainSettings(batch_size=15), CPU)
    assert len(train_batches(few, TrainSettings(batch_size=16), CPU)) == 3


def test_a_batch_larger_than_the_data_is_refused_for_several_processes(few, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="more than the 48 training images"):
        train_batches(few, TrainSettings(batch_size=64), CPU)


SHARED = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import sdb.data
from sdb.config import TrainSettings, WrapSettings
from sdb.keys import Key
from sdb.models import ModelSpec
from sdb.runs.folder import open_run
from sdb.runtime import world
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

data = sdb.data.load("digits", subset_percent=0.2)
data = replace(data, validation=data.validation.take(np.arange(33)))  # does not divide among two
out = Path(sys.argv[1])
quick = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "optimizer": "sgd"}
torch.manual_seed(0)
model = ModelSpec("mlp", {}, 10, (1, 8, 8), data.mean, data.std).build()

settings = TrainSettings(**quick)
with open_run(out / "train", settings.model_dump(mode="json"), torch.device("cpu")) as run:
    train(model, data, settings, run=run)
settings = WrapSettings(method="sdb", **quick)
with open_run(out / "wrap", settings.model_dump(mode="json"), torch.device("cpu")) as run:
    box = wrap(model, data, settings, key=Key(bytes(range(32))), run=run)
torch.save({"train": model.state_dict(), "wrap": box.classifier.state_dict()}, out / f"rank{world().rank}.pt")
"""


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The folders of the same jobs run by one process and by two."""
    folders = []
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ):
        folder = tmp_path_factory.mktemp(name)
        script = folder / "job.py"
        script.write_text(SHARED)
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(folder)],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    return folders


@pytest.mark.parametrize("job", ["train", "wrap"])
def test_two_processes_give_the_weights_of_one(one_and_two, job):
    one, two = one_and_two
    expected = torch.load(one / "rank0.pt", weights_only=True)[job]
    ranks = [torch.load(two / f"rank{rank}.pt", weights_only=True)[job] for rank in (0, 1)]
    torch.testing.assert_close(ranks[0], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])


@pytest.mark.parametrize("job", ["train", "wrap"])
def test_two_processes_report_the_numbers_of_one(one_and_two, job):
    records = [[json.loads(line) for line in (f / job / METRICS).read_text().splitlines()] for f in one_and_two]
    for single, double in zip(*records, strict=True):
        assert double["validation"] == pytest.approx(single["validation"], rel=1e-4)
        assert double["terms"] == pytest.approx(single["terms"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("job", ["train", "wrap"])
def test_only_the_first_process_writes(one_and_two, job):
    one, two = one_and_two
    names = [sorted(p.name.split("tfevents")[0] for p in (f / job).iterdir()) for f in (one, two)]
    assert names[0] == names[1]
    log = (two / job / "training.log").read_text()
    assert log.count("epoch 1:") == log.count("epoch 2:") == log.count("parameters") == 1
    assert json.loads((two / job / "environment.json").read_text())["processes"] == 2
