"""Thieves against the mark: each does what it says; the account is named, the control is not; too few ties are said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sdb.audit.archive import Folder, Memory
from sdb.audit.marks.after import after, consensus, prune, pushed, quantise
from sdb.audit.marks.lessons import detector, lesson, majority, surest, without_ties
from sdb.audit.marks.mark_seed import training
from sdb.audit.marks.measure import CONTROL, lacks
from sdb.audit.marks.service import changed
from sdb.audit.marks.study import MarkSettings, MarkSubject, coins_needed, mark_seed, study, tie_cost
from sdb.audit.marks.thieves import QUICK, THIEVES, Thief
from sdb.data import ImageSet, Splits
from sdb.errors import ConfigError
from sdb.keys import Owner
from sdb.report.mark_words import Outcome, judged, lines, sentence
from sdb.tracing.ties import log10_tail

OWNER, CLASSES, SHAPE = Owner(bytes(range(32))), 8, (1, 12, 12)
THREE = ("labels", "weights of 4 bits", "two accounts, drops disagreements")
QUICKLY = {"student_model": "mlp", "student_args": {}, "budget": 0.1, "queries": 400, "epochs": 40}


class Linear(nn.Module):
    """A model that is often unsure: fixed random weights on pixels."""

    def __init__(self, sharp=1.0):
        super().__init__()
        weights = torch.randn(CLASSES, 144, generator=torch.Generator().manual_seed(0))
        self.weights, self.sharp = nn.Parameter(weights, requires_grad=False), sharp

    def forward(self, images):
        return self.sharp * (images.flatten(1) - 0.5) @ self.weights.T / 2


def splits(model):
    """Images of noise, labelled by draws from the model's own probabilities: its confidence is honest."""
    rng = np.random.default_rng(0)

    def part(count):
        images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        chances = model(torch.from_numpy(images.astype(np.float32) / 255)).softmax(dim=1).numpy().cumsum(axis=1)
        labels = (rng.random((count, 1)) > chances).sum(axis=1).clip(max=CLASSES - 1)
        return ImageSet(images, labels.astype(np.int64))

    names = tuple("abcdefgh")
    return Splits("noise", part(300), part(400), part(1000), names, (0.5,), (0.29,))


def subject(sharp=1.0):
    model = Linear(sharp)
    return MarkSubject(model, splits(model), OWNER, "box")


@pytest.fixture(scope="module")
def found():
    return study(subject(), MarkSettings(thieves=THREE, **QUICKLY))


def timeless(result):
    """The rows of a result by seed, without times."""
    return {
        seed: {
            name: row | {"seconds": 0} for name, row in (values["thieves"] | {"facts": values["facts"]}).items()
        }
        for seed, values in result["seeds"].items()
    }


def test_a_plain_thief_is_named_and_the_control_is_not(found):
    row = found["seeds"]["0"]["thieves"]["labels"]
    (account,) = row["accounts"]
    assert account["account"] == "0 labels 0"
    assert account["corrected_log10_p"] < -6 < row["control"]["corrected_log10_p"]
    assert row["control"]["account"] == f"0 {CONTROL}"
    assert account["log10_p"] == log10_tail(account["hits"], account["usable"])
    assert row["learned"] == 400
    rows = {each.name: each for each in judged(found)}
    assert rows["labels"].outcome is Outcome.NAMED
    assert rows["labels"].agree == account["hits"] / account["usable"]
    assert rows["labels"].control == row["control"]["corrected_log10_p"]
    facts = found["seeds"]["0"]["facts"]
    assert rows["labels"].beside == pytest.approx(100 * (row["accuracy"] - facts["plain_thief"]))


def test_a_thief_may_ask_by_two_accounts_and_drop_what_differs(found):
    row = found["seeds"]["0"]["thieves"]["two accounts, drops disagreements"]
    assert {each["account"][-1] for each in row["accounts"]} == {"0", "1"}
    assert row["learned"] < 400
    # Half of the ties are dropped; on those that are left both accounts have the same coin.
    assert all(each["hits"] / each["usable"] < 0.9 for each in row["accounts"])


def test_the_sentence_and_the_table(found):
    named = [row for row in judged(found) if row.outcome is Outcome.NAMED]
    assert found["sentence"].startswith(f"Of 3 thieves of 400 labels, {len(named)} are named at p < 1e-6")
    assert all(name in found["markdown"] for name in THREE)
    assert found["sentence"] in found["markdown"]
    head, columns, *rows = lines(found)
    assert head.startswith("Model ")
    assert columns.startswith("thief")
    assert [row.split("  ")[0] for row in rows] == [row.name for row in judged(found)]


def test_what_was_interrupted_ends_as_what_was_not(found, tmp_path):
    settings = MarkSettings(thieves=THREE[:2], **QUICKLY)

    def stop(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(subject(), settings, stop, Folder(tmp_path))
    done = sorted(path.stem for path in (tmp_path / "seed-0" / "results").iterdir())
    assert done == ["facts", "labels"]
    before = (tmp_path / "seed-0" / "results" / "labels.json").stat().st_mtime_ns
    resumed, whole = study(subject(), settings, archive=Folder(tmp_path)), timeless(found)
    whole["0"].pop(THREE[2])
    assert timeless(resumed) == whole
    assert (tmp_path / "seed-0" / "results" / "labels.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("sharp", "why"),
    [(40.0, "validation images show too few near ties"), (4.0, "secret coins, and with fewer than 21")],
)
def test_too_few_ties_are_said(sharp, why):
    result = study(
        subject(sharp), MarkSettings(thieves=("labels",), queries=60, budget=0.001 if sharp > 4 else 0.0003)
    )
    assert result["sentence"].startswith("Nothing to test: ")
    assert why in result["sentence"]
    assert result["seeds"] == {}
    assert lines(result) == []


def test_the_fewest_coins_are_the_fewest_that_can_name():
    needed = coins_needed()
    assert log10_tail(needed, needed) + np.log10(2) < -6 <= log10_tail(needed - 1, needed - 1) + np.log10(2)


def test_an_unknown_thief_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"'lable'.*did you mean 'labels'.*flips; .*boundaries smoothed"):
        study(subject(), MarkSettings(thieves=("lable",)))


def test_more_queries_than_images_are_refused():
    with pytest.raises(ConfigError, match="queries: 501; there are 500 images"):
        study(subject(), MarkSettings(thieves=("labels",), queries=501))
    with pytest.raises(ConfigError, match="left out no training images"):
        study(subject(), MarkSettings(pool="left_out"))


def test_no_image_that_a_thief_asks_about_measures_it():
    one = subject()
    settings = MarkSettings(**QUICKLY)
    seed = mark_seed(one, settings, tie_cost(one, settings, Memory()), 3, Memory())
    asked = {image.tobytes() for image in seed.pool.images}
    assert len(asked) == len(seed.own.test) == 500
    assert not asked & {image.tobytes() for image in seed.own.test.images}
    assert asked <= {image.tobytes() for image in one.data.test.images}


def test_the_lists_hang_together():
    assert set(QUICK) <= set(THIEVES)
    assert len(QUICK) == 12
    few = mark_seed(subject(), MarkSettings(**QUICKLY), _cost(), 0, Memory())
    reasons = {name: lacks(few, thief) for name, thief in THIEVES.items()}
    assert {name for name, reason in reasons.items() if reason} == {
        "student of the thief, other images",
        "tuned on 1,000 true labels",
    }
    assert reasons["tuned on 1,000 true labels"].startswith("needs 1,400 images")


def _cost():
    one, settings = subject(), MarkSettings(**QUICKLY)
    return tie_cost(one, settings, Memory())


# --- each transformation against a slow loop ----------------------------------------------------------------------


def test_majority_is_the_commonest_answer():
    told = [np.random.default_rng(number).integers(0, 4, 50) for number in range(5)]
    for place, given in enumerate(majority(told, 4)):
        counts = [sum(each[place] == label for each in told) for label in range(4)]
        assert counts[given] == max(counts)
        assert given == counts.index(max(counts))


def test_the_least_sure_are_dropped():
    sure = np.random.default_rng(0).permutation(100) / 100
    kept = surest(sure, 0.2)
    assert len(kept) == 80
    assert min(sure[kept]) > max(sure[each] for each in range(100) if each not in kept)


class Answers(nn.Module):
    """Always the same class, surely."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        return 9.0 * nn.functional.one_hot(torch.full((len(images),), self.label), CLASSES).float()


def given(thief, told, learned):
    """What a thief learns, with networks that say class 7, and what they learned from."""
    images = np.zeros((len(told[0]), *SHAPE), np.uint8)

    def learn(which, labels, name):
        learned[name] = dict(zip(which.tolist(), labels.tolist(), strict=True))
        return Answers(7)

    seed = mark_seed(subject(), MarkSettings(**QUICKLY), _cost(), 0, Memory())
    logits = np.zeros((len(told[0]), CLASSES), np.float32)
    which, labels = lesson(seed, thief, images, told, logits, np.random.default_rng(0), learn)
    return dict(zip(which.tolist(), labels.tolist(), strict=True)), seed


TOLD = [np.array([0, 1, 2, 3, 4, 5]), np.array([0, 2, 2, 4, 4, 5])]


def test_disagreements_are_dropped_or_relabelled():
    agreed = {place: a for place, (a, b) in enumerate(zip(*TOLD, strict=True)) if a == b}
    assert given(Thief(accounts=2, labels="drops disagreements"), TOLD, {})[0] == agreed
    learned = {}
    relabelled, _ = given(Thief(accounts=2, labels="relabels disagreements"), TOLD, learned)
    assert learned["first"] == agreed
    assert relabelled == {place: agreed.get(place, 7) for place in range(6)}


def test_one_at_random_and_half_its_own():
    mixed, _ = given(Thief(accounts=2, labels="one at random"), [np.zeros(300, int), np.ones(300, int)], {})
    assert 110 < sum(mixed.values()) < 190
    own, seed = given(Thief(labels="half its own"), [np.full(300, 9)], {})
    mine = [place for place, label in own.items() if label != 9]
    assert 110 < len(mine) < 190
    assert all(own[place] == seed.pool.labels[place] for place in mine)


def test_likely_ties_are_found_and_relabelled_by_a_network_that_saw_none_of_them():
    rng = np.random.default_rng(0)
    ties = rng.random(400) < 0.3
    images = np.zeros((400, *SHAPE), np.uint8)
    images[ties] = 255
    labels, other = np.zeros(400, int), np.zeros(200, int)
    labels[ties], coins = rng.integers(0, 2, ties.sum()), rng.integers(0, 2, ties[:200].sum())
    other[ties[:200]] = coins
    learned = {}

    class Doubt(nn.Module):
        """Sure of dark images, unsure of bright ones, and for class 3 of these."""

        def forward(self, pixels):
            bright = pixels.flatten(1).mean(dim=1)
            return torch.stack([5 * (1 - bright), bright * 0, bright * 0, bright + 0.1], dim=1)

    def learn(which, told, name):
        learned[name] = set(which.tolist())
        assert (labels[which] == told).all()
        return Doubt()

    changed_labels = without_ties(images, labels, other, learn, 0.9)
    assert (changed_labels[ties] == 3).all()
    assert (changed_labels[~ties] == labels[~ties]).all()
    assert learned["first"] == set(np.flatnonzero(~ties).tolist())
    assert learned["fold-0"] == {n for n in range(1, 400, 2) if n >= 200 or labels[n] == other[n]}
    assert without_ties(images, labels, labels[:200], learn, 0.9) is labels


def test_the_detector_is_logistic_regression():
    rng = np.random.default_rng(0)
    clues = rng.normal(0, 2, (500, 2))
    ties = rng.random(500) < 1 / (1 + np.exp(-(clues[:, 0] - 1)))
    scores = detector(clues, ties, clues)
    # Slowly: gradient descent on the same penalised loss.
    known = np.column_stack([np.ones(500), (clues - clues.mean(axis=0)) / clues.std(axis=0)])
    weights = np.zeros(3)
    for _ in range(4000):
        weights -= 0.004 * (known.T @ (1 / (1 + np.exp(-known @ weights)) - ties) + weights)
    np.testing.assert_allclose(scores, known @ weights, atol=1e-3)


def test_half_of_the_weights_are_pruned_and_weights_have_15_values():
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    before = {name: each.clone() for name, each in network.named_parameters()}
    prune(network)
    for name, each in network.named_parameters():
        ordered = sorted(before[name].abs().flatten().tolist())
        middle = ordered[(len(ordered) - 1) // 2]
        wanted = [
            v if before[name].dim() == 1 or abs(v) >= middle else 0.0 for v in before[name].flatten().tolist()
        ]
        assert each.flatten().tolist() == wanted
    network.load_state_dict(before)
    quantise(network)
    for name, each in network.named_parameters():
        step = max(abs(v) for v in before[name].flatten().tolist()) / 7
        if before[name].dim() > 1:
            wanted = [round(v / step) * step for v in before[name].flatten().tolist()]
            assert each.flatten().tolist() == pytest.approx(wanted, abs=1e-6)
        else:
            assert torch.equal(each, before[name])


def test_images_are_pushed_towards_a_class_by_one_signed_step():
    model, rng = Linear(), np.random.default_rng(0)
    images = rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    towards = np.array([0, 3, 7, 7, 2])
    moved = pushed(model, images, towards)
    for image, label, other in zip(images.reshape(5, -1), towards, moved.reshape(5, -1), strict=True):
        for pixel, weight, found in zip(image, model.weights[label].tolist(), other, strict=True):
            assert abs(int(found) - min(255, max(0, pixel + 255 * 0.15 * np.sign(weight)))) <= 0.51


def test_a_consensus_is_that_of_noisy_copies():
    model, images = Linear(), np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    found = consensus(model, images, np.random.default_rng(1))
    rng, total = np.random.default_rng(1), 0
    for _ in range(8):
        pixels = changed(images, 12, rng).astype(np.float32) / 255
        total = total + model(torch.from_numpy(pixels)).double().softmax(dim=1)
    assert found.tolist() == total.argmax(dim=1).tolist()


def test_only_much_noise_also_moves_and_mirrors():
    images = np.full((6, *SHAPE), 100, np.uint8)
    images[..., :6] = 200
    little = changed(images, 4, np.random.default_rng(0)).astype(int)
    assert abs(little - images).max() < 30
    much = changed(images, 16, np.random.default_rng(0)).astype(int)
    assert any(each[..., :5].mean() < 150 for each in much)


@pytest.mark.parametrize("name", ["boundaries moved", "boundaries moved, crops and flips", "boundaries smoothed"])
def test_boundaries_are_moved_on_a_copy(name):
    settings = MarkSettings(**QUICKLY)
    seed = mark_seed(subject(), settings, _cost(), 0, Memory())
    student = seed.fresh("net", 0).eval()
    before = {n: each.clone() for n, each in student.state_dict().items()}
    made = after(seed, name, THIEVES[name], student, seed.images(60))
    assert all(torch.equal(each, before[n]) for n, each in student.state_dict().items())
    assert any(not torch.equal(each, before[n]) for n, each in made.state_dict().items())
    again = after(seed, name, THIEVES[name], student, seed.images(60))
    assert all(torch.equal(each, made.state_dict()[n]) for n, each in again.state_dict().items())


# --- what is said --------------------------------------------------------------------------------------------------


def made_up(found, **rows):
    """A result of two seeds with these rows, `(p of an account, coins asked, p of the control)` or a reason."""

    def row(value):
        if isinstance(value, str):
            return {"skipped": value}
        p, asked, control = value
        account = {"usable": asked, "hits": asked, "asked": asked, "corrected_log10_p": p}
        return {"accuracy": 0.5, "accounts": [account], "control": {"corrected_log10_p": control}}

    seeds = {
        str(number): {
            "facts": found["seeds"]["0"]["facts"] | {"plain_thief": 0.51},
            "thieves": {name: row(values[number]) for name, values in rows.items()},
        }
        for number in (0, 1)
    }
    return found | {"seeds": seeds}


def test_one_seed_of_two_is_not_all(found):
    result = made_up(
        found,
        a=((-9, 40, 0), (-7, 40, 0)),
        b=((-9, 40, 0), (-1, 40, 0)),
        c=((-5.9, 40, 0), (0, 40, 0)),
        d=((0, 20, 0), (0, 20, 0)),
        e=("nothing is left", "nothing is left"),
    )
    assert sentence(result) == (
        "Of 3 thieves of 400 labels, 1 is named at p < 1e-6 in each of 2 seeds; in some seeds: b (-1.0); the mark is "
        "lost to: c (-1.0). In brackets: points of accuracy beside a thief of answers without ties. Too few coins to "
        "test: d. Left out: e (nothing is left)."
    )


def test_a_control_that_is_named_is_shouted(found):
    result = made_up(found, a=((-9, 40, 0), (-9, 40, -7)))
    assert sentence(result).startswith("Do not trust this: the control account")


def test_the_usual_training_is_that_of_the_benchmark():
    settings = training(3, 20)
    assert (settings.optimizer, settings.learning_rate, settings.schedule) == ("adamw", 0.003, "one_cycle")
