"""What makes training fast or small must not change what is trained: the same trajectory, within rounding."""

import copy
import itertools

import pytest
import torch
from torch import nn

from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import Batches
from sdb.distillation import distill
from sdb.errors import ConfigError
from sdb.keys import Key, Owner
from sdb.runs.folder import open_run
from sdb.training.loop import cut, train, train_batches
from sdb.training.optimizers import RISE, learning_rate_at, make_optimizer
from sdb.training.repeated_views import FixedViews, Remembered, answers
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
KEY = Key(bytes(range(32)))
QUICK = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "optimizer": "sgd"}  # 48 images: 9 steps
CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # in float64, after a few steps


def trained(model, data, **changes):
    train(model, data, TrainSettings(**QUICK | changes))
    return dict(model.state_dict())


# --- memory layout ---------------------------------------------------------------------------------------------------


def kernels(module):
    return [parameter for parameter in module.parameters() if parameter.ndim == 4]


@pytest.mark.parametrize("name", ["net", "preresnet20"])
def test_the_layout_of_the_weights_changes_no_result(few, make_net, in_float64, name):
    last, first = make_net(few, name), make_net(few, name)
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels(last))
    first.to(memory_format=torch.contiguous_format)
    assert all(kernel.is_contiguous() for kernel in kernels(first))
    assert any(
        last_one.stride() != first_one.stride() for last_one, first_one in zip(*map(kernels, (last, first)))
    )
    torch.testing.assert_close(trained(last, few), trained(first, few), **CLOSE)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_optimizer_s_moments_lie_as_the_weights_do(few, make_net, tmp_path, optimizer):
    """A fused optimizer walks both in memory order: moments in another order would belong to other weights."""
    long, short = (TrainSettings(**QUICK | {"optimizer": optimizer, "schedule": "constant"}) for _ in range(2))
    short = short.model_copy(update={"epochs": 1})
    whole, broken = make_net(few), make_net(few)
    train(whole, few, long)
    with open_run(tmp_path / "run", {}, CPU) as run:
        train(broken, few, short, run=run)
    again = make_net(few)
    with open_run(tmp_path / "run", {}, CPU, resume=True) as run:
        train(again, few, long, run=run)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert kernels(again)[1].shape[1:] == (4, 3, 3)  # a kernel whose two layouts differ


# --- a batch in parts ------------------------------------------------------------------------------------------------


def test_a_batch_is_cut_into_all_of_itself(few):
    batch = next(Batches(few.train, 16).epoch(0))
    parts = cut(batch, 4)
    assert [len(part.labels) for part in parts] == [4] * 4
    for field in batch._fields:
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


@pytest.mark.parametrize("parts", [2, 16])
def test_accumulated_parts_are_the_whole_batch(few, make_net, in_float64, parts):
    """Without batch norm, which sees parts."""
    whole = trained(make_net(few, "mlp"), few, clip_norm=0.5)
    torch.testing.assert_close(
        trained(make_net(few, "mlp"), few, clip_norm=0.5, accumulation_steps=parts), whole, **CLOSE
    )


def test_the_paper_s_sums_over_a_batch_are_accumulated_as_sums(few, make_net, in_float64):
    teacher = make_net(few, "mlp", seed=1)
    boxes = []
    for parts in (1, 4):
        chosen = WrapSettings(method="sdb", augmentation_weight=0.01, accumulation_steps=parts, **QUICK)
        boxes.append(wrap(teacher, few, chosen, key=KEY).classifier.state_dict())
    torch.testing.assert_close(boxes[1], boxes[0], **CLOSE)


def test_losses_of_parts_are_reported_as_the_batch_s(few, make_net):
    histories = [
        train(make_net(few, "mlp"), few, TrainSettings(**QUICK, accumulation_steps=parts)) for parts in (1, 4)
    ]
    for one, four in zip(*histories, strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize(("batch", "parts"), [(16, 3), (64, 2)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused(few, batch, parts):
    with pytest.raises(ConfigError, match="accumulation_steps|batch_size"):
        train_batches(few, TrainSettings(batch_size=batch, accumulation_steps=parts), CPU)


# --- activations computed again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "weight"])
def test_checkpointed_activations_change_no_box(few, make_net, in_float64, kind):
    teacher = make_net(few, "preresnet20", seed=1)
    owner = Owner(bytes(32))
    boxes = []
    for on in (False, True):
        chosen = WrapSettings(activation_checkpointing=on, **QUICK | {"epochs": 1})
        box = wrap(teacher, few, chosen, key=owner.partner("a", kind), owner=owner)
        boxes.append(box.classifier.state_dict())
    torch.testing.assert_close(boxes[1], boxes[0], **CLOSE)


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdb", "decoy"])
def test_a_compiled_box_is_the_same(few, make_net, in_float64, method):
    """Boxes without random numbers in the forward: those that wrong keys are made of are drawn otherwise there."""
    teacher, owner = make_net(few, seed=1), Owner(bytes(32))
    key = owner.partner("a", "image" if method == "sdb" else "weight")
    boxes = []
    for mode in ("off", "default"):
        chosen = WrapSettings(method=method, compile=mode, **QUICK)
        boxes.append(wrap(teacher, few, chosen, key=key, owner=owner).classifier.state_dict())
    torch.testing.assert_close(boxes[1], boxes[0], **CLOSE)


# --- schedule --------------------------------------------------------------------------------------------------------


def test_one_cycle_rises_and_falls_in_straight_lines():
    chosen = TrainSettings(learning_rate=0.4, epochs=10, schedule="one_cycle")
    rise = 10 * RISE
    assert learning_rate_at(chosen, 0) == 0
    assert learning_rate_at(chosen, rise / 2) == pytest.approx(0.2)
    assert learning_rate_at(chosen, rise) == pytest.approx(0.4)
    assert learning_rate_at(chosen, (10 + rise) / 2) == pytest.approx(0.2)
    assert learning_rate_at(chosen, 10) == 0
    rates = [learning_rate_at(chosen, step / 50) for step in range(501)]
    assert sum(b > a for a, b in itertools.pairwise(rates)) == 50 * rise
    assert all(b != a for a, b in itertools.pairwise(rates))


def test_one_cycle_changes_the_rate_at_every_step(few, make_net, in_float64):
    """Three plain steps on one batch's gradient, at the schedule's rates by hand."""
    chosen = TrainSettings(**QUICK | {"epochs": 1, "schedule": "one_cycle", "momentum": 0.0, "weight_decay": 0.0})
    model, copied = make_net(few, "mlp"), make_net(few, "mlp")
    train(model, few, chosen)
    copied.train()
    for number, batch in enumerate(train_batches(few, chosen, CPU).epoch(0)):
        loss = nn.functional.cross_entropy(copied(batch.images), batch.labels)
        gradients = torch.autograd.grad(loss, list(copied.parameters()))
        rate = learning_rate_at(chosen, number / 3)
        with torch.no_grad():
            for parameter, gradient in zip(copied.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    torch.testing.assert_close(dict(model.state_dict()), dict(copied.state_dict()), **CLOSE)


def test_nesterov_is_passed_on(few, make_net):
    assert make_optimizer([make_net(few)], TrainSettings(optimizer="sgd", nesterov=True)).defaults["nesterov"]
    assert not make_optimizer([make_net(few)], TrainSettings(optimizer="sgd")).defaults["nesterov"]


# --- nobody waits for the device -------------------------------------------------------------------------------------


class Strict:
    """Progress that forbids waiting for the device between an epoch's first step and its last."""

    def start(self, epochs, first, steps):
        self.left = steps

    def step(self):
        self.left -= 1
        torch.cuda.set_sync_debug_mode("error" if self.left else "default")

    def epoch(self, record):
        pass

    def close(self):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("method", "kind"), [("sdb", "image"), ("decoy", "image"), ("decoy", "weight")])
def test_a_step_on_a_gpu_never_waits(few, make_net, method, kind):
    owner = Owner(bytes(32))
    chosen = WrapSettings(method=method, device="cuda", clip_norm=1.0, **QUICK | {"epochs": 1})
    try:
        wrap(make_net(few, seed=1), few, chosen, key=owner.partner("a", kind), owner=owner, progress=Strict())
        for loss in ("kd", "dkd", "dist", "standardised_kd"):
            short = DistillSettings(**QUICK | {"epochs": 1}, device="cuda", loss=loss)
            distill(make_net(few, seed=1), make_net(few), few, short, progress=Strict())
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- answers asked for once ------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A teacher that counts the images it is asked about."""

    def __init__(self, network):
        super().__init__()
        self.network, self.count = network, 0

    def __deepcopy__(self, memo):
        return self

    def forward(self, images):
        self.count += len(images)
        return self.network(images)


@pytest.mark.parametrize(
    ("changes", "passes"), [({"augment": False}, 1), ({"views": 2}, 2), ({"views": 9}, 4), ({}, 4)]
)
def test_a_teacher_is_asked_once_for_each_view(few, make_net, changes, passes):
    teacher = Counting(make_net(few, seed=1).eval())
    distill(teacher, make_net(few), few, DistillSettings(**QUICK | {"epochs": 4} | changes))
    assert 0 <= teacher.count - passes * len(few.train) < 8  # and the few images that it is tried on


@pytest.mark.parametrize("changes", [{"augment": False}, {"views": 2}])
def test_remembered_answers_train_the_same_student(few, make_net, in_float64, monkeypatch, changes):
    teacher, students = make_net(few, seed=1).eval(), []
    for limit in (2**30, 0):
        monkeypatch.setattr("sdb.training.repeated_views.ANSWER_BYTES", limit)
        student = make_net(few)
        distill(teacher, student, few, DistillSettings(**QUICK | changes))
        students.append(dict(student.state_dict()))
    torch.testing.assert_close(*students, **CLOSE)


@pytest.mark.parametrize("method", ["nasty", "sdb"])
def test_boxes_on_unchanging_images_are_the_same_when_the_teacher_is_asked_once(
    few, make_net, in_float64, monkeypatch, method
):
    teacher, boxes = make_net(few, seed=1), []
    for limit in (2**30, 0):
        monkeypatch.setattr("sdb.training.repeated_views.ANSWER_BYTES", limit)
        chosen = WrapSettings(method=method, augment=False, augmentation_weight=0.01, **QUICK)
        box = wrap(teacher, few, chosen, key=None if method == "nasty" else KEY)
        boxes.append(box.classifier.state_dict())
    torch.testing.assert_close(*boxes, **CLOSE)


def test_answers_belong_to_their_images_in_every_view(few, make_net, in_float64):
    teacher = make_net(few, seed=1).eval()
    views = FixedViews(Batches(few.train, 16, seed=5, shuffle=True, augment=few.augment), 3)
    ask = answers(teacher, views, few.num_classes)
    assert isinstance(ask, Remembered)
    for epoch in (4, 0, 2, 1):
        for batch in views.epoch(epoch):
            torch.testing.assert_close(ask(batch), teacher(batch.images).detach(), **CLOSE)


def test_views_that_do_not_repeat_are_asked_about_batch_by_batch(few, make_net):
    teacher = make_net(few, seed=1).eval()
    batches = Batches(few.train, 16, seed=5, shuffle=True, augment=few.augment)
    ask = answers(teacher, batches, few.num_classes)
    assert not isinstance(ask, Remembered)
    batch = next(batches.epoch(1))
    assert torch.equal(ask(batch), teacher(batch.images))
    assert not ask(batch).requires_grad


def test_copies_keep_the_layout(few, make_net):
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels(copy.deepcopy(make_net(few))))
