"""What is taken where nothing is set: fine-tuning for a wrap, the optimizer's usual rate, and who is told what."""

import itertools
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdb.data
from sdb import config
from sdb.config import DistillSettings, FitSettings, TrainSettings, WrapParams, WrapSettings
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.training.optimizers import learning_rate_at, make_optimizer, resolved
from sdb.wrapping.accuracy import shortfall
from sdb.wrapping.wrap import wrap

FROM = ("epochs", "batch_size", "optimizer", "schedule", "learning_rate")


# --- defaults --------------------------------------------------------------------------------------------------------


def test_a_wrap_from_its_teacher_is_fine_tuned_and_one_from_scratch_is_trained():
    tuned, trained, plain = WrapSettings(), WrapSettings(start="scratch"), TrainSettings()
    assert {name: getattr(trained, name) for name in FROM} == {name: getattr(plain, name) for name in FROM}
    assert (tuned.optimizer, tuned.schedule) == ("adamw", "one_cycle")
    assert tuned.epochs < trained.epochs
    # Params of a file and settings in Python agree.
    for start in ("teacher", "scratch"):
        params, settings = WrapParams(model_name="net", teacher="t", start=start), WrapSettings(start=start)
        assert {name: getattr(params, name) for name in FROM} == {name: getattr(settings, name) for name in FROM}


@pytest.mark.parametrize("start", ["teacher", "scratch"])
def test_what_is_set_wins_wherever_a_wrap_starts(start):
    values = {"epochs": 3, "batch_size": 7, "optimizer": "sgd", "schedule": "constant", "learning_rate": 0.3}
    for count in range(len(values) + 1):
        for names in itertools.combinations(values, count):
            chosen = {name: values[name] for name in names}
            made, usual = WrapSettings(start=start, **chosen), WrapSettings(start=start)
            assert {name: getattr(made, name) for name in FROM} == {
                name: chosen.get(name, getattr(usual, name)) for name in FROM
            }


@pytest.mark.parametrize("settings", [TrainSettings, DistillSettings, FitSettings, WrapSettings])
@pytest.mark.parametrize(
    ("optimizer", "name", "expected"),
    [
        ("auto", "net", 0.001),
        ("auto", "mlp", 0.001),
        ("auto", "preresnet20", 0.1),
        ("adam", "preresnet20", 0.001),
        ("adamw", "preresnet20", 0.001),
        ("sgd", "net", 0.1),
    ],
)
def test_the_rate_is_the_usual_one_of_the_optimizer_that_trains_the_network(
    few, make_net, settings, optimizer, name, expected
):
    network = make_net(few, name)
    chosen = settings(optimizer=optimizer, **({"start": "scratch"} if settings is WrapSettings else {}))
    assert make_optimizer([network], chosen).defaults["lr"] == expected
    fitted = resolved(chosen, network)
    assert fitted.learning_rate == expected == learning_rate_at(fitted, 0)
    # What is set is never replaced.
    assert resolved(chosen.model_copy(update={"learning_rate": 0.7}), network).learning_rate == 0.7


class LayerNorm2d(torch.nn.Module):
    """As timm and torchvision have it: named so, and no subclass."""


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(8), torch.nn.RMSNorm(8), LayerNorm2d()])
def test_a_teacher_with_layer_norm_is_fine_tuned_more_gently(few, make_net, norm):
    plain, transformer = make_net(few), make_net(few)
    transformer.network.norm = norm
    for optimizer in ("adamw", "adam", "sgd", "auto"):
        high, low = (
            resolved(WrapSettings(optimizer=optimizer), network).highest_rate for network in (plain, transformer)
        )
        assert low < high < 0.1
        # From scratch both are trained alike.
        scratch = WrapSettings(optimizer=optimizer, start="scratch")
        assert resolved(scratch, plain) == resolved(scratch, transformer)
    assert resolved(WrapSettings(learning_rate=0.5), transformer).highest_rate == 0.5


def test_a_run_without_a_rate_uses_and_records_the_usual_one(few, make_net):
    history = train(make_net(few), few, TrainSettings(epochs=1, batch_size=16))
    assert history[0]["learning_rate"] == 0.001
    history = train(make_net(few, "preresnet20"), few, TrainSettings(epochs=1, batch_size=16, augment=False))
    assert history[0]["learning_rate"] == 0.1


def test_adamw_is_torch_s_and_decays_apart_from_the_gradient(few, make_net):
    network = make_net(few)
    optimizer = make_optimizer([network], TrainSettings(optimizer="adamw", learning_rate=0.1, weight_decay=0.5))
    assert type(optimizer) is torch.optim.AdamW
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5))


# --- names of other frameworks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "meant"),
    [
        ("lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("wd", "weight_decay"),
        ("bs", "batch_size"),
        ("max_epochs", "epochs"),
        ("num_train_epochs", "epochs"),
        ("optim", "optimizer"),
        ("lr_scheduler", "schedule"),
        ("grad_clip", "clip_norm"),
        ("random_state", "seed"),
        ("amp", "precision"),
        ("gradient_checkpointing", "activation_checkpointing"),
    ],
)
@pytest.mark.parametrize("settings", [TrainSettings, WrapSettings, DistillSettings])
def test_a_name_of_another_framework_is_told_ours(settings, given_name, meant):
    with pytest.raises(ConfigError, match=f"{given_name}: unknown parameter, did you mean '{meant}'?"):
        settings(**{given_name: 1})


@pytest.mark.parametrize(
    ("settings", "meant"), [(WrapSettings, "temperature"), (DistillSettings, "kd_temperature")]
)
def test_a_temperature_is_the_command_s_own(settings, meant):
    for name in ("temp", "T", "tau"):
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            settings(**{name: 4})


def test_every_translation_is_a_parameter_and_no_name_of_ours_is_translated():
    known = {name for model in config.COMMANDS.values() for name in model.model_fields}
    for theirs, ours in config.names.ELSEWHERE.items():
        assert set(ours) <= known
        assert theirs not in known | config.ALIASES.keys()


# --- the teacher beside its box --------------------------------------------------------------------------------------


@given(
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.2), st.integers(1, 10**5)
)  # fmt: skip
def test_a_shortfall_is_said_exactly_where_a_side_is_below_by_more_than_is_allowed(
    teacher, keyless, keyed, allowed, images
):
    right = [round(images * value) for value in (teacher, keyless, keyed)]
    names = ("teacher", "keyless", "keyed")
    measured = {f"{name}_accuracy": value / images for name, value in zip(names, right, strict=True)}
    said = shortfall(measured | {"images": images}, WrapSettings(allowed_loss=allowed))
    lost = max(right[0] - right[1], right[0] - right[2], 0)
    above = lost - math.sqrt(lost) - allowed * images  # by more than a count's own standard deviation
    assert bool(said) is (above > 0) or abs(above) < 1e-6


def test_a_few_images_of_a_small_set_are_no_shortfall_and_as_large_a_share_of_a_large_one_is():
    def said(images, lost):
        measured = {"teacher_accuracy": 1.0, "keyless_accuracy": 1 - lost / images, "images": images}
        return shortfall(measured, WrapSettings())

    assert [bool(said(130, lost)) for lost in range(7)] == [False] * 4 + [True] * 3
    assert not said(13_000, 130)
    assert said(13_000, 200)
    assert "by more than 1 point on 13000 validation images" in said(13_000, 200)


def test_the_advice_names_what_the_method_has():
    low = {"teacher_accuracy": 0.98, "keyless_accuracy": 0.9, "keyed_accuracy": 0.98, "images": 1000}
    keyed = low | {"keyless_accuracy": 0.98, "keyed_accuracy": 0.9}
    broken = low | {"keyless_accuracy": 0.13}
    nasty = {"teacher_accuracy": 0.98, "keyless_accuracy": 0.9, "images": 1000}
    rate = WrapSettings(learning_rate=0.1)
    for measured, settings, there, absent in (
        (
            low,
            rate,
            ("ce_weight", "epochs", "98.0", "90.0"),
            ("margin", "disturbance", "learning_rate", "keyed_ce"),
        ),
        (low, WrapSettings(confidence_levels=0), ("margin", "ce_weight"), ("keyed_ce",)),
        (keyed, rate, ("keyed_ce_weight", "epochs"), ("margin", "disturbance")),
        (broken, rate, ("lower learning_rate (now 0.1)",), ("disturbance",)),
        (nasty, WrapSettings(method="nasty"), ("disturbance_weight", "epochs"), ("margin", "budget")),
    ):
        said = shortfall(measured, settings)
        assert all(word in said for word in there), said
        assert not any(word in said for word in absent), said


def test_a_wrap_reports_its_teacher_each_epoch_and_warns_at_the_end_where_it_broke_it(
    small_teacher, digits, caplog
):
    history = []
    wrecked = WrapSettings(optimizer="sgd", learning_rate=5.0, schedule="constant", epochs=2, clip_norm=1.0)
    with caplog.at_level(logging.WARNING, logger="sdb"):
        box = wrap(small_teacher, digits, wrecked, key=Key.generate(kind="weight"), history=history)
    truth = evaluate(small_teacher, evaluation_batches(digits.validation, torch.device("cpu")))["accuracy"]
    assert [record["validation"]["teacher_accuracy"] for record in history] == [truth, truth]
    assert "below its teacher" in caplog.text and "lower learning_rate (now 5)" in caplog.text
    assert box.info.measured["keyless_accuracy"] < truth - 0.1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="sdb"):
        wrap(
            small_teacher,
            digits,
            wrecked.model_copy(update={"allowed_loss": 1.0}),
            key=Key.generate(kind="weight"),
        )
    assert "below its teacher" not in caplog.text


def test_with_nothing_set_a_box_keeps_its_teacher_s_accuracy(make_net):
    """All digits and a small network: benchmarks/wrap_defaults.py measures more, with seeds."""
    digits = sdb.data.load("digits")
    teacher = make_net(digits, num_channels=12)
    train(teacher, digits, TrainSettings(epochs=12, batch_size=64, optimizer="adamw", learning_rate=0.003))
    key = Key(bytes(range(32)), 0.5, "weight")
    box = wrap(teacher, digits, key=key)
    batches = evaluation_batches(digits.test, torch.device("cpu"))
    plain, keyless, keyed = (evaluate(model, batches)["accuracy"] for model in (teacher, box, box.unlock(key)))
    # A point, and what chance does to 500 images of another processor's arithmetic.
    assert keyless > plain - 0.025
    assert keyed > plain - 0.02


def test_a_rate_that_the_run_filled_in_is_no_difference_from_the_file(tmp_path):
    (tmp_path / "params.json").write_text('{"dataset": "digits", "model_name": "net", "teacher": "t"}')
    open_rate = config.load(tmp_path, "wrap")
    filled = open_rate.model_copy(update={"learning_rate": 0.003})
    assert config.differing(tmp_path, filled, "wrap") == {}
    assert config.differing(tmp_path, filled.model_copy(update={"seed": 3}), "wrap") == {"seed": (3, 0)}
