"""Distilling: who may ask what, and that a student learns from what it is told and from nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb import losses
from sdb.config import DistillSettings, WrapSettings
from sdb.data import Batch, Batches, ImageSet, from_arrays
from sdb.distillation import check_loss, distill, distillation_step
from sdb.errors import ConfigError, KeyFileError
from sdb.keys import Key
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.repeated_views import asked
from sdb.wrapping.wrap import wrap

KEY, FOREIGN = Key(bytes(range(32)), blend=0.5), Key(bytes(32), blend=0.5)
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
LOSSES = ["kd", "dkd", "dist", "standardised_kd"]


@pytest.fixture(scope="module")
def box(few, make_net):
    return wrap(make_net(few), few, WrapSettings(method="sdb", **QUICK), key=KEY)


@pytest.fixture
def student_of(few, make_net, weights_of):
    """A function that distils a fresh student and gives its weights."""

    def distilled(teacher, data=few, key=None, **changes):
        student = make_net(data, seed=7)
        distill(teacher, student, data, DistillSettings(**QUICK | changes), key=key)
        assert not any(module.training for module in student.modules())
        return weights_of(student)

    return distilled


# --- losses without content ------------------------------------------------------------------------------------------

# Loss, its settings, the numbers of classes with which it teaches nothing.
EMPTY = [
    ("standardised_kd", {}, {2}),
    ("dkd", {"dkd_target_weight": 0.0}, {2}),
    ("dkd", {"dkd_target_weight": 0.0, "dkd_rest_weight": 0.0}, {2, 3, 10}),
    ("dkd", {}, set()),
    ("dkd", {"dkd_rest_weight": 0.0}, set()),
    ("kd", {}, set()),
    ("dist", {}, set()),
]


@pytest.mark.parametrize(("loss", "changes", "empty"), EMPTY)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_loss_is_refused_exactly_where_its_gradient_is_nothing_whatever_the_teacher_says(
    loss, changes, empty, classes
):
    chosen = DistillSettings(loss=loss, ce_weight=0.0, kd_weight=1.0, **changes).resolved()
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 16, classes, generator=generator, dtype=torch.float64)
    s.requires_grad_()
    batch = Batch(torch.zeros(16, 1, 1, 1), torch.arange(16) % classes, torch.arange(16))
    (term,) = distillation_step(lambda batch: t, chosen)(lambda images: s, batch).values()
    (gradient,) = torch.autograd.grad(term, s)
    assert (float(gradient.abs().max()) < 1e-5) == (classes in empty)
    if classes not in empty:
        check_loss(chosen, classes)
        return
    with pytest.raises(ConfigError, match=f"loss: '{loss}' teaches nothing here: .*(use 'kd'|set one above 0)"):
        check_loss(chosen, classes)
    check_loss(chosen.model_copy(update={"kd_weight": 0.0}), classes)  # then it is not used


def test_distilling_two_classes_with_such_a_loss_is_refused_before_it_begins(make_net, weights_of, same_weights):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    data = from_arrays(images, labels, test_images=images, test_labels=labels, class_names=["cat", "dog"])
    teacher, student = make_net(data), make_net(data, seed=1)
    before = weights_of(student)
    for changes in ({"loss": "standardised_kd"}, {"loss": "dkd", "dkd_target_weight": 0.0}):
        with pytest.raises(ConfigError, match="two classes"):
            distill(teacher, student, data, DistillSettings(**QUICK | changes))
    assert same_weights(weights_of(student), before)
    distill(teacher, student, data, DistillSettings(**QUICK, loss="dkd"))


# --- whom is asked ---------------------------------------------------------------------------------------------------


def test_a_thief_learns_from_the_keyless_box_and_a_partner_from_the_unlocked_one(box, student_of, same_weights):
    thief, partner = student_of(box), student_of(box, key=KEY)
    assert same_weights(thief, student_of(box.classifier))
    assert same_weights(partner, student_of(box.unlock(KEY)))
    assert not same_weights(thief, partner)


def test_a_key_for_what_is_no_box_is_refused(few, make_net, student_of):
    with pytest.raises(ConfigError, match="not one"):
        student_of(make_net(few), key=KEY)


def test_a_foreign_key_is_refused_unless_it_is_an_attack(box, student_of, same_weights):
    with pytest.raises(KeyFileError, match="another box"):
        student_of(box, key=FOREIGN)
    assert same_weights(student_of(box, key=FOREIGN, foreign_key=True), student_of(box.attempt(FOREIGN)))


def test_any_module_from_images_to_logits_is_a_teacher(few, student_of, same_weights):
    class Fixed(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10]

    assert not same_weights(student_of(Fixed()), student_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


def test_the_student_sees_plain_images_whoever_asks(few, box, make_net):
    seen = []
    student = make_net(few, seed=7)
    student.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].clone()) if module.training else None
    )
    distill(box, student, few, DistillSettings(**{**QUICK, "epochs": 1}, augment=False), key=KEY)
    shown = torch.cat(seen)
    plain = {image.tobytes() for image in few.train.images}
    assert {(image * 255).round().byte().numpy().tobytes() for image in shown} == plain


# --- what is learnt --------------------------------------------------------------------------------------------------


def step_terms(few, make_net, teacher, **changes):
    chosen = DistillSettings(**QUICK | changes).resolved()
    batch = next(Batches(few.train, 16).epoch(0))
    student = make_net(few, seed=7).eval()
    return (
        distillation_step(asked(teacher), chosen)(student, batch),
        student(batch.images),
        teacher(batch.images),
        batch,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_the_terms_are_the_loss_and_the_cross_entropy_each_with_its_weight(few, make_net, loss):
    teacher = make_net(few).eval()
    given = {"kd_weight": 0.7, "ce_weight": 0.2, "kd_temperature": 3.0, "label_smoothing": 0.1}
    terms, answer, target, batch = step_terms(few, make_net, teacher, loss=loss, **given)
    arguments = {"temperature": 3.0} | ({"target_weight": 1.0, "rest_weight": 8.0} if loss == "dkd" else {})
    term = getattr(losses, f"{loss}_term")(answer, target, batch.labels, **arguments)
    assert terms.keys() == {"distillation", "cross_entropy"}
    torch.testing.assert_close(terms["distillation"], 0.7 * term)
    torch.testing.assert_close(terms["cross_entropy"], 0.2 * losses.cross_entropy(answer, batch.labels, 0.1))
    assert not target.requires_grad or terms["distillation"].requires_grad


def test_dkd_s_parts_have_their_own_weights(few, make_net):
    teacher = make_net(few).eval()
    totals = [
        step_terms(few, make_net, teacher, loss="dkd", dkd_target_weight=a, dkd_rest_weight=b)[0]["distillation"]
        for a, b in ((1, 0), (0, 1), (2, 3))
    ]
    torch.testing.assert_close(totals[2], 2 * totals[0] + 3 * totals[1])


def test_a_term_of_weight_zero_is_not_computed(few, make_net):
    teacher = make_net(few).eval()
    assert step_terms(few, make_net, teacher, kd_weight=1.0)[0].keys() == {"distillation"}
    assert step_terms(few, make_net, teacher, kd_weight=0.0)[0].keys() == {"cross_entropy"}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_without_labels_never_looks_at_them(few, make_net, student_of, same_weights, loss):
    scrambled = np.roll(few.train.labels, 1)
    assert not np.array_equal(scrambled, few.train.labels)
    other = replace(few, train=ImageSet(few.train.images, scrambled))
    teacher = make_net(few)
    without = [student_of(teacher, data, loss=loss, labels=False) for data in (few, other)]
    assert same_weights(*without)
    having = [student_of(teacher, data, loss=loss) for data in (few, other)]
    assert not same_weights(*having)


def test_neither_weight_is_refused_before_training(few, make_net, student_of):
    with pytest.raises(ConfigError, match="nothing to learn"):
        student_of(make_net(few), kd_weight=0.0, ce_weight=0.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_comes_nearer_to_its_teacher(digits, make_net, loss):
    from sdb.config import TrainSettings
    from sdb.training.loop import train

    teacher, student = make_net(digits, num_channels=8), make_net(digits, seed=7, num_channels=8)
    longer = {"epochs": 15, "batch_size": 32, "learning_rate": 0.01}
    train(teacher, digits, TrainSettings(**longer))
    history = []
    distill(teacher, student, digits, DistillSettings(loss=loss, labels=False, **longer), history=history)
    test = evaluation_batches(digits.test, torch.device("cpu"))
    assert evaluate(student, test)["accuracy"] > 0.55
    assert history[-1]["terms"]["distillation"] < 0.5 * history[0]["terms"]["distillation"]


def test_a_path_in_place_of_a_run_folder_is_refused(few, make_net):
    with pytest.raises(ConfigError, match="run: 'runs/student' is a path"):
        distill(make_net(few), make_net(few, seed=1), few, run="runs/student")
