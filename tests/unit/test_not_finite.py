"""What is not finite is never kept, never loaded and never written: weights, metrics, JSON."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdb.box.box import Box
from sdb.box.private_part import PrivatePart, put_in_place
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import CheckpointError, ModelError, TrainingError
from sdb.keys import Key
from sdb.models import from_module
from sdb.models.checkpoint import load_classifier, read_tensors, write_tensors
from sdb.models.weights import not_finite
from sdb.runs.folder import BEST, LAST, METRICS, open_run
from sdb.runtime import json_text
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import fit, train_batches
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
SHORT = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01}


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def spoil(tensor, value=math.nan):
    with torch.no_grad():
        tensor.view(-1)[0] = value


def test_the_first_that_is_not_finite_is_named_whatever_stands_beside_it():
    module = nn.Module()
    module.whole = nn.Parameter(torch.arange(3), requires_grad=False)  # as quantised networks have them
    module.empty = nn.Parameter(torch.zeros(0))
    module.small = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    module.large = nn.Parameter(torch.full((4,), 3e38))
    assert not_finite(module) is None
    for name in ("large", "small"):
        spoil(getattr(module, name))
        assert not_finite(module) == name


@pytest.mark.parametrize(
    ("what", "value", "says"),
    [
        ("weight", math.nan, "network.fc1.weight is not finite"),
        ("weight", -math.inf, "network.fc1.weight is not finite"),
        ("statistic", math.inf, "network.bn1.running_var is not finite"),
        ("beside", math.nan, "weight is not finite"),
        ("metric", math.nan, "validation cross_entropy is not finite"),
        ("metric", math.inf, "validation cross_entropy is not finite"),
    ],
)
@pytest.mark.parametrize("bad_epoch", [1, 2])
def test_an_epoch_that_its_last_step_spoilt_is_not_kept(tmp_path, few, make_net, what, value, says, bad_epoch):
    model, beside = make_net(few), Beside()
    spoilt = {
        "weight": model.network.fc1.weight,
        "statistic": model.network.bn1.running_var,
        "beside": beside.weight,
    }
    validation, epochs = evaluation_batches(few.validation, CPU), []

    def metrics():
        epochs.append(1)
        found = evaluate(model, validation)
        if len(epochs) == bad_epoch and what in spoilt:
            spoil(spoilt[what], value)
        if len(epochs) == bad_epoch and what == "metric":
            found["cross_entropy"] = value
        return found

    folder = tmp_path / "run"
    kept = "no epoch is kept" if bad_epoch == 1 else "epoch 1, the last finite one, is kept"
    with (
        pytest.raises(TrainingError, match=f"epoch {bad_epoch}, .*{says}; {kept}"),
        open_run(folder, {}, CPU) as run,
    ):
        fit(
            model,
            lambda forward, batch: {"loss": F.cross_entropy(forward(batch.images), batch.labels)},
            train_batches(few, TrainSettings(**SHORT), CPU),
            TrainSettings(**SHORT),
            evaluate=metrics,
            monitor="accuracy",
            beside=beside,
            run=run,
        )
    assert [(folder / name).exists() for name in (LAST, BEST, METRICS)] == [bad_epoch == 2] * 3
    if bad_epoch == 2:
        tensors, header = read_tensors(folder / LAST)
        assert len(header["history"]) == len((folder / METRICS).read_text().splitlines()) == 1
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        load_classifier(folder)


def test_a_run_that_was_kept_with_such_an_epoch_does_not_go_on(tmp_path, few, make_net):
    model, folder = make_net(few), tmp_path / "run"
    with open_run(folder, {}, CPU):
        pass
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_tensors(folder / LAST, weights, {"spec": model.spec.to_json(), "history": []})
    # As an sdb wrote it that did not look; the digest is over the text as it stands.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdb.models.checkpoint.json_text", json.dumps)
        record = {"epoch": 1, "validation": {"accuracy": 0.1, "cross_entropy": math.nan}}
        write_tensors(folder / LAST, weights, {"spec": model.spec.to_json(), "history": [record]})
    load_classifier(folder)  # its weights are whole
    with (
        pytest.raises(CheckpointError, match="not finite.*--overwrite"),
        open_run(folder, {}, CPU, resume=True) as run,
    ):
        run.resume_state(model)


@pytest.mark.parametrize("method", ["decoy", "sdb", "nasty"])
def test_a_teacher_that_is_not_finite_is_refused_by_wrap(few, make_net, method):
    teacher = make_net(few)
    spoil(teacher.network.fc1.bias)
    key = None if method == "nasty" else Key.generate(kind="image" if method == "sdb" else "weight")
    with pytest.raises(CheckpointError, match=r"teacher: its network\.fc1\.bias is not finite"):
        wrap(teacher, few, WrapSettings(**SHORT, method=method), key=key)


def test_a_teacher_that_is_not_finite_is_refused_by_distill(few, make_net, weights_of, same_weights):
    teacher, student = make_net(few), make_net(few, seed=1)
    before = weights_of(student)
    spoil(teacher.network.bn1.running_mean, math.inf)
    for asked in (teacher, nn.Sequential(teacher)):
        with pytest.raises(CheckpointError, match=r"teacher: its .*network\.bn1\.running_mean is not finite"):
            distill(asked, student, few, DistillSettings(**SHORT))
    assert same_weights(weights_of(student), before)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda z: (z, z), r"returned tuple \[\(2, 10\), \(2, 10\)\], expected \(2, 10\).*sdb\.from_module"),
        (lambda z: z.softmax(1), "returns probabilities"),
        (lambda z: z[:, :3], r"returned \(2, 3\)"),
    ],
)
def test_a_module_that_gives_no_logits_is_refused_by_distill(few, make_net, answer, says):
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_net(few)

        def forward(self, x):
            return answer(self.inner(x))

    with pytest.raises(ModelError, match=says):
        distill(Teacher(), make_net(few), few, DistillSettings(**SHORT))


def test_a_box_that_is_not_finite_is_refused_when_it_is_loaded(tmp_path, few, make_net):
    key = Key.generate()
    box = wrap(make_net(few), few, WrapSettings(**SHORT | {"epochs": 1}), key=key)
    spoil(box.classifier.network.fc2.weight)
    box.save(tmp_path / "box")
    with pytest.raises(CheckpointError, match=r"box: its network\.fc2\.weight is not finite"):
        Box.load(tmp_path / "box")


def test_a_private_part_that_is_not_finite_is_refused_when_it_is_opened(few, make_net):
    network = make_net(few)
    held = PrivatePart(network).export()
    spoil(held["network.bn1.weight"])
    with pytest.raises(CheckpointError, match=r"private part: network\.bn1\.weight is not finite"):
        put_in_place(network, held)


def test_masks_may_hold_minus_infinity(tmp_path, few, make_net):
    network = make_net(few).network
    network.register_buffer("mask", torch.full((3,), -torch.inf))
    teacher = from_module(network, 10, few.image_shape, (0.3,), (0.4,))
    wrap(teacher, few, WrapSettings(**SHORT | {"epochs": 1}), key=Key.generate())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_never_holds_what_json_does_not_have(value):
    assert json_text({"a": [1.5, None]}, indent=1) == json.dumps({"a": [1.5, None]}, indent=1)
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": [1.5, value]})
