"""What a thief gains from a guard: measured with students of tables, texts and anybody's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import sdb
from sdb.answers.compact import CompactRows
from sdb.answers.guard import Guard, as_outputs
from sdb.audit import guard_learners
from sdb.audit.guard_learners import learner_of
from sdb.audit.guard_networks import NgramNetwork, dense, hashed
from sdb.audit.guard_students import EstimatorStudent, TableStudent, copies, fitted, module_student, named_by
from sdb.audit.guard_ways import ways_of
from sdb.audit.guarded import draw, halves
from sdb.errors import ConfigError, DataError, MissingExtraError, ModelError
from sdb.keys import Owner
from sdb.report.guarded import THIEF, USERS
from sdb.report.intervals import same_examples
from sdb.report.judgement import Judgement
from sdb.report.pairs import Scores

CLASSES, COLUMNS = 8, 16


class Ridge:
    """A student in closed form: soft targets are worth a lot to it, and it takes a millisecond."""

    def __init__(self, seed):
        self.seed = seed

    def fit(self, inputs, targets, weights):
        root = np.sqrt(weights)[:, None]
        left = inputs * root
        right = (np.log(targets.clip(1e-3)) - np.log(targets.clip(1e-3)).mean(axis=1, keepdims=True)) * root
        self.matrix = np.linalg.solve(left.T @ left + 0.1 * np.eye(inputs.shape[1]), left.T @ right)

    def predict(self, inputs):
        return inputs @ self.matrix


class Model:
    """Probabilities of a linear model of a table."""

    def __init__(self):
        self.matrix = 1.2 * np.random.default_rng(0).normal(size=(COLUMNS, CLASSES))
        self.asked = 0

    def __call__(self, inputs):
        self.asked += len(inputs)
        shares = np.exp(inputs @ self.matrix)
        return shares / shares.sum(axis=1, keepdims=True)


def table(count, seed):
    """Inputs, and labels that are as likely as the model says."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, COLUMNS))
    return inputs, (Model()(inputs).cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)


class Unprotected(Guard):
    """Gives the model's own answers."""

    def answer(self, outputs):
        return as_outputs(outputs)


def guarded(**options):
    """A guard with decoys that are the same in every run, so that what is measured is too."""
    made = sdb.guard(Model(), table(900, 1), owner=Owner.generate(), **options)
    decoys = (np.arange(CLASSES)[:, None] + [2, 5]) % CLASSES
    return Guard(made.info, CompactRows(made.rows.edges, made.rows.told, decoys), made.model)


@pytest.fixture(scope="module")
def guard():
    return guarded()


@pytest.fixture(scope="module")
def examples():
    return table(1600, 2)


@pytest.fixture(scope="module")
def found(guard, examples):
    return sdb.audit_guard(guard, examples, student=Ridge, pairs=6, few=6)


def test_a_guard_denies_what_the_bare_model_gives(found):
    assert found.at_stake.above
    assert found.at_stake.value > 0.1
    assert not found.thief.above
    assert found.partner == found.at_stake
    assert found.promises[THIEF].judgement is not Judgement.BROKEN
    assert found.promises[USERS].judgement is Judgement.ESTABLISHED
    gained = f"{100 * found.at_stake.value:.1f} points"
    assert found.sentence.startswith(
        f"With 6 labelled examples per class, a thief gains {gained} from the bare model and nothing that chance "
    )
    assert found.sentence.endswith(f"from the guard; a partner gains {gained}.")
    assert found.summary().splitlines()[0] == found.sentence


def test_a_guard_that_gives_the_model_s_own_answers_is_broken(guard, examples):
    bare = Unprotected(guard.info, guard.rows, guard.model)
    found = sdb.audit_guard(bare, examples, student=Ridge, pairs=6, few=6)
    assert found.promises[THIEF].judgement is Judgement.BROKEN
    assert found.judged.judgement is Judgement.BROKEN
    assert found.thief == found.at_stake
    assert found.bits is None
    assert "an answer for each input" in found.summary()
    assert "A guard of one level" in found.summary()


def test_a_guard_of_one_level_leaks_nothing(examples):
    found = sdb.audit_guard(guarded(confidence_levels=1), examples, student=Ridge, pairs=6, few=6)
    assert found.at_stake.above
    assert not found.thief.above
    assert found.bits == found.stated_bits == 0


def test_where_soft_answers_are_worth_nothing_it_says_so():
    inputs, labels = table(1200, 3)
    outputs = np.where(np.eye(CLASSES)[labels] > 0, 0.93, 0.01)
    guard = sdb.guard(None, (outputs[:400], labels[:400]), owner=Owner.generate())
    given = (inputs[400:], labels[400:])
    found = sdb.audit_guard(guard, given, outputs=outputs[400:], student=Ridge, pairs=4, few=6)
    assert found.promises[THIEF].judgement is Judgement.NOTHING_AT_STAKE
    assert found.sentence.startswith(
        "Nothing at stake here: with 6 labelled examples per class, a student of the bare"
    )
    assert "no guard can show what it keeps back" in found.sentence
    assert "established" not in found.summary().splitlines()[1]


def test_a_test_that_is_too_small_to_see_a_stake_says_so(found):
    names = [found.way("bar"), "bare/one", "thief/one"]
    values = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.8), (0.5, 0.5, 0.5))
    small = replace(found, scores={name: Scores(each, each) for name, each in zip(names, values, strict=True)})
    assert small.promises[THIEF].judgement is Judgement.NOTHING_AT_STAKE
    assert "Something may be at stake: this test is too small" in small.summary()
    assert "Something may be at stake" not in found.summary()


def test_the_way_is_chosen_by_validation_and_measured_by_test(found):
    scores = {
        "bar/one": Scores((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)),
        "bar/two": Scores((0.4, 0.4, 0.4), (0.5, 0.5, 0.5)),
        "bare/one": Scores((0.9, 0.9, 0.9), (0.1, 0.1, 0.1)),
        "bare/two": Scores((0.7, 0.7, 0.7), (0.2, 0.2, 0.2)),
        "thief/one": Scores((0.9, 0.9, 0.9), (0.1, 0.1, 0.1)),
        "thief/two": Scores((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)),
    }
    made = replace(found, scores=scores)
    assert [made.way(who) for who in ("bar", "bare", "thief")] == ["bar/two", "bare/two", "thief/two"]
    assert made.at_stake.value == pytest.approx(0.3)
    assert made.thief.value == pytest.approx(-0.3)


def test_each_score_is_of_its_own_examples(guard, examples):
    """A student that knows the test examples by heart, and no others."""
    inputs, labels = examples
    _, test = halves(labels, 6, 0)
    known = {inputs[row].tobytes(): labels[row] for row in test}

    class Knowing(Ridge):
        def predict(self, inputs):
            return np.array([known.get(each.tobytes(), 0) for each in inputs])

    found = sdb.audit_guard(guard, examples, student=Knowing, pairs=3, few=6)
    for each in found.scores.values():
        assert each.test == (1.0, 1.0, 1.0)
        assert max(each.validation) <= 1 / CLASSES  # one class of eight, of one example each


def test_users_are_measured_on_test_examples(found, examples):
    inputs, labels = examples
    _, test = halves(labels, 6, 0)
    shares = Model()(inputs[test])
    right = shares.argmax(axis=1) == labels[test]
    assert found.test == len(test)
    assert found.users["teacher_accuracy"] == found.users["keyless_accuracy"] == pytest.approx(right.mean())
    assert found.users["teacher_brier"] == pytest.approx(((shares.max(axis=1) - right) ** 2).mean())
    assert found.only_right == (0, 0)
    assert found.bits == pytest.approx(found.stated_bits, abs=0.15)


def test_confidence_that_is_not_what_it_says_breaks_a_promise(found):
    lying = replace(found, users=dict(found.users) | {"keyless_calibration_error": 0.2})
    assert lying.promises[USERS].judgement is Judgement.BROKEN
    losing = replace(found, only_right=(40, 0))
    assert losing.promises[USERS].judgement is Judgement.BROKEN


def test_the_model_s_outputs_do_as_well_as_the_model(guard, examples, found):
    bare = Guard(guard.info, guard.rows)
    same = sdb.audit_guard(bare, examples, outputs=Model()(examples[0]), student=Ridge, pairs=6, few=6)
    assert same.scores == found.scores
    with pytest.raises(ConfigError, match="has no model"):
        sdb.audit_guard(bare, examples, student=Ridge)


def test_what_is_found_is_json(found):
    read = json.loads(found.to_json())
    assert read["kind"] == "guard_audit"
    assert read["gains"]["thief"]["value"] == found.thief.value
    assert read["promises"][THIEF]["judgement"] == str(found.promises[THIEF].judgement)
    assert read["sentence"] == found.sentence
    assert read["scores"][found.way("bar")]["test"] == list(found.scores[found.way("bar")].test)
    assert len(read["scores"]) == 19


def test_draws_are_few_of_each_class_and_never_test_examples(examples):
    labels = examples[1]
    pool, test = halves(labels, 6, 0)
    assert sorted([*pool, *test]) == list(range(len(labels)))
    for part in (pool, test):
        assert (np.abs(np.bincount(labels[part]) - np.bincount(labels) / 2) <= 1).all()
    draws = [draw(labels, pool, 6, seed) for seed in range(3)]
    for learned, choosing in draws:
        assert not set(learned) & set(choosing)
        assert set(learned) | set(choosing) <= set(pool)
        assert (np.bincount(labels[learned]) == 5).all()
        assert (np.bincount(labels[choosing]) == 1).all()
    assert set(draws[0][0]) != set(draws[1][0])


def test_the_bar_knows_labels_and_classes_alone_and_a_thief_what_the_guard_tells():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 30)
    bare, other, told = (np.log(rng.dirichlet(np.ones(5), 30)) for _ in range(3))
    other[np.arange(30), bare.argmax(axis=1)] = 1.0  # the same classes, all else different
    first, second = ways_of(labels, bare, told), ways_of(labels, other, told)
    third = ways_of(labels, bare, np.log(rng.dirichlet(np.ones(5), 30)))

    def same(one, two):
        return {name for name in one if all((a == b).all() for a, b in zip(one[name], two[name], strict=True))}

    groups = {who: {name for name in first if name.startswith(who)} for who in ("bar/", "bare/", "thief/")}
    assert [len(each) for each in groups.values()] == [8, 4, 7]
    assert same(first, second) == groups["bar/"] | groups["thief/"]
    assert same(first, third) == groups["bar/"] | groups["bare/"]
    for targets, weights in first.values():
        assert targets.sum(axis=1) == pytest.approx(1)
        assert weights.mean() == pytest.approx(1)


def test_lessons_against_a_loop():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 12)
    bare, told = (np.log(rng.dirichlet(np.ones(4), 12)) for _ in range(2))
    lessons = ways_of(labels, bare, told)
    sure = [max(np.exp(row)) for row in told]
    for row in range(12):
        named, copied = int(np.argmax(bare[row])), int(np.argmax(told[row]))
        for label in range(4):
            powers = [np.exp(each / 4) for each in told[row]]
            soft = 0.5 * powers[label] / sum(powers) + 0.5 * (label == labels[row])
            assert lessons["thief/T=4, labels 0.5"][0][row, label] == pytest.approx(soft)
            assert lessons["bare/T=1, labels 0"][0][row, label] == pytest.approx(np.exp(bare[row, label]))
            assert lessons["bar/top-1, smoothed more"][0][row, label] == pytest.approx(
                0.7 * (label == named) + 0.075
            )
            level = sure[row] if label == copied else (1 - sure[row]) / 3
            assert lessons["thief/levels as targets"][0][row, label] == pytest.approx(level)
            trusted = sure[row] >= np.quantile(sure, 0.2)
            kept = copied if trusted else labels[row]
            assert lessons["thief/levels as filter"][0][row, label] == (label == kept)
            assert lessons["thief/levels as weights"][0][row, label] == (label == copied)
        assert lessons["thief/levels as weights"][1][row] == pytest.approx(sure[row] / np.mean(sure))


def test_copies_have_the_loss_of_soft_targets():
    """Against a float64 loop over examples and classes; a share that is too small is spread over the others."""
    rng = np.random.default_rng(0)
    targets, logs = rng.dirichlet(np.ones(5), 20), np.log(rng.dirichlet(np.ones(5), 20))
    weights = rng.random(20)
    targets[0] = [0.5, 0.3, 0.2 - 5e-4, 5e-4, 0.0]
    examples, classes, counts = copies(targets, weights)
    expected = 0.0
    for row in range(20):
        kept = sum(share for share in targets[row] if share >= 1e-3)
        for label in range(5):
            if targets[row, label] >= 1e-3:
                expected -= weights[row] * targets[row, label] / kept * logs[row, label]
    assert -(counts * logs[examples, classes]).sum() == pytest.approx(expected)
    assert (examples == 0).sum() == 3
    assert np.bincount(examples, counts) == pytest.approx(weights)


class Counting:
    """An estimator of scikit-learn's kind: the most frequent label by weight, of each value of the first column."""

    def get_params(self):
        return {}

    def fit(self, inputs, labels, sample_weight=None):
        assert set(labels) == set(range(len(set(labels))))  # as some want them
        self.votes = {}
        for row, label, weight in zip(inputs, labels, sample_weight, strict=True):
            votes = self.votes.setdefault(row[0], {})
            votes[label] = votes.get(label, 0) + weight

    def predict(self, inputs):
        return [max(self.votes[row[0]], key=self.votes[row[0]].get) for row in inputs]


def test_an_estimator_learns_soft_targets_and_weights():
    inputs = np.array([[0.0], [0.0], [1.0], [1.0]])
    targets = np.array([[0.6, 0, 0.4], [0.1, 0, 0.9], [0.3, 0, 0.7], [1.0, 0, 0]])

    def named(weights):
        student = fitted(lambda seed: Counting(), inputs, targets, np.array(weights), 0)
        assert isinstance(student, EstimatorStudent)
        return named_by(student, np.array([[0.0], [1.0]]), 2, 3).tolist()

    assert named([1.0, 1, 1, 1]) == [2, 0]  # class 1, which nobody shows, keeps its place
    assert named([9.0, 1, 1, 1]) == [0, 0]
    assert named([1.0, 1, 9, 1]) == [2, 2]


def test_a_network_learns_soft_targets_and_weights():
    inputs = np.repeat(np.eye(2), 8, axis=0).astype(np.float32)
    targets = np.concatenate([np.tile([[0.9, 0.1], [0.3, 0.7]], (4, 1)), np.tile([[0.2, 0.8], [1, 0]], (4, 1))])
    even, first = np.ones(16), np.tile([2.0, 0.0], 8)
    new = module_student(lambda seed: torch.nn.Linear(2, 2), epochs=80, learning_rate=0.1)

    def shares(weights, targets=targets):
        scores = fitted(new, inputs, targets, weights, 0).predict(np.eye(2, dtype=np.float32))
        return torch.from_numpy(scores).softmax(dim=1)[:, 0].tolist()

    assert shares(even) == pytest.approx([0.6, 0.6], abs=0.05)
    assert shares(first) == pytest.approx([0.9, 0.2], abs=0.05)


def test_students_of_a_pair_begin_alike_and_leave_torch_s_random_numbers():
    inputs, targets = table(40, 0)[0], np.eye(CLASSES)[table(40, 0)[1]]
    new = module_student(lambda seed: dense(COLUMNS, 8, CLASSES), epochs=2)
    found = []
    for seed in (1, 1, 2):
        torch.rand(1)  # somebody draws in between
        before = torch.get_rng_state()
        found.append(fitted(new, inputs, targets, np.ones(40), seed).predict(inputs))
        assert (torch.get_rng_state() == before).all()
    one, same, other = found
    assert (one == same).all()
    assert (one != other).any()


def test_several_inputs_by_name_and_output_objects():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(3)

        def forward(self, left, right):
            return type("Output", (), {"logits": self.layer(self.norm(torch.cat([left, right], dim=1)))})

    rng = np.random.default_rng(0)
    inputs = {
        "left": rng.normal(size=(33, 1)),
        "right": rng.normal(size=(33, 2)),
    }  # 4 batches of 8, and one is left
    labels = (inputs["left"][:, 0] > 0).astype(int)
    student = fitted(lambda seed: Two(), inputs, np.eye(2)[labels], np.ones(33), 0)
    assert (named_by(student, inputs, 33, 2) == labels).mean() > 0.7


def texts(count=60):
    rng = np.random.default_rng(0)
    words = (["ship", "wave", "harbour"], ["bread", "oven", "flour"], ["rail", "coach", "station"])
    labels = np.arange(count) % 3
    return [" ".join(rng.choice(words[label], 2)) for label in labels], labels


def test_ngrams_learn_texts_and_bytes():
    given, labels = texts()
    for inputs in (given, np.array(given), [text.encode() for text in given]):
        learner = learner_of(None, inputs, 3)
        assert learner.name == "ngrams"
        assert (learner.features == hashed(given)).all()
    student = fitted(learner.new, learner.features[:30], np.eye(3)[labels[:30]], np.ones(30), 0)
    assert (named_by(student, learner.features[30:], 30, 3) == labels[30:]).all()


def test_hashed_texts_have_no_order_of_length_and_are_cut():
    codes = hashed(["a b", "a b a b a b", ""], longest=7)
    assert codes.shape == (3, 7)
    assert (codes[2] == 0).all()
    assert codes.max() < 2**13
    network = NgramNetwork(4, 2).eval()
    with torch.no_grad():
        assert network(codes[:1]) == pytest.approx(network(torch.nn.functional.pad(codes[:1], (0, 5))))


def test_mlp_learns_tables_whatever_their_scale():
    inputs, labels = table(60, 4)
    learner = learner_of(None, inputs * 1000 + 5, CLASSES)
    assert learner.name == "mlp"

    def named(given):
        student = fitted(
            lambda seed: TableStudent(dense(COLUMNS, 16, CLASSES), seed, epochs=30),
            given,
            np.eye(CLASSES)[labels],
            np.ones(60),
            0,
        )
        return named_by(student, given, 60, CLASSES)

    assert (named(inputs) == labels).mean() > 0.8
    assert (named(inputs * 1000 + 5) == named(inputs)).all()


def test_an_audit_with_a_built_in_student(guard, monkeypatch):
    monkeypatch.setattr(guard_learners, "MLP", (8, 1))
    inputs, labels = table(300, 5)
    told = []
    found = sdb.audit_guard(
        guard, (inputs, labels), few=3, pairs=3, on_progress=lambda done, total, name: told.append((done, total))
    )
    assert found.student == "mlp"
    assert found.learned == 2 * CLASSES
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_trees_need_scikit_learn(monkeypatch):
    monkeypatch.setattr(guard_learners.importlib, "import_module", lambda name: __import__("no_such_package"))
    with pytest.raises(MissingExtraError, match=r"safe-distillation-box\[trees\]"):
        learner_of("trees", table(10, 0)[0], CLASSES)


def test_trees_learn_soft_targets():
    pytest.importorskip("sklearn")
    inputs, _ = table(200, 6)
    shares = Model()(inputs)
    learner = learner_of("trees", inputs, CLASSES)
    student = fitted(learner.new, inputs, shares, np.ones(200), 0)
    assert (named_by(student, inputs, 200, CLASSES) == shares.argmax(axis=1)).mean() > 0.8


def test_a_difference_on_the_same_examples():
    none = same_examples(0, 0, 300)
    assert none.value == 0
    assert 0 < none.half < 0.01
    some = same_examples(30, 10, 1000)
    assert some.value == pytest.approx(0.02)
    rng, gaps = np.random.default_rng(0), np.repeat([1, -1, 0], [30, 10, 960])
    means = [rng.choice(gaps, 1000).mean() for _ in range(4000)]
    assert some.half == pytest.approx(1.96 * np.std(means), rel=0.1)


def changed(name, value):
    """What is given to an audit, with one thing wrong."""
    inputs, labels = table(400, 7)
    return {"inputs": inputs, "labels": labels} | {name: value(inputs, labels)}


@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        (changed("labels", lambda x, y: y + 1), {}, DataError, "labels: 1 to 8; classes are 0 to 7"),
        (changed("labels", lambda x, y: y[:-1]), {}, DataError, "give 400 whole numbers"),
        (changed("labels", lambda x, y: y * 0), {}, DataError, "labels: no two classes"),
        ({}, {"few": 30}, DataError, "labels: .* of class .*; 30 examples .* need 60 of it"),
        ({}, {"few": 1}, ConfigError, "at least 2 examples per class"),
        ({}, {"pairs": 2}, ConfigError, "at least 3 pairs"),
        ({}, {"outputs": np.full((400, 8), np.nan)}, ModelError, "NaN"),
        ({}, {"outputs": np.full((399, 8), 1 / 8)}, DataError, r"outputs: \(399, 8\) for 400 examples"),
        ({}, {"outputs": np.full((400, 7), 1 / 7)}, ModelError, "this guard was made for"),
        ({}, {"student": "forest"}, ConfigError, "student: 'forest' is none of ngrams, mlp, trees"),
        ({}, {"student": "ngrams"}, DataError, "ngrams reads texts"),
        ({}, {"student": Ridge(0)}, ConfigError, "one Ridge; many are trained"),
        ({}, {"student": torch.nn.Linear(2, 2)}, ConfigError, "one Linear; many are trained"),
        (
            changed("inputs", lambda x, y: x[:, :, None]),
            {"student": None},
            ConfigError,
            "none of ngrams, mlp, trees",
        ),
        (
            changed("inputs", lambda x, y: np.where(x > 3, np.nan, x)),
            {"student": "mlp"},
            DataError,
            "NaN or infinity",
        ),
        (changed("inputs", lambda x, y: ["a"] * 400), {"student": "mlp"}, DataError, "mlp reads tables"),
    ],
)
def test_what_cannot_be_audited(guard, given, options, error, said):
    inputs, labels = table(400, 7)
    bare = Guard(guard.info, guard.rows)
    options = {"student": Ridge, "few": 6, "pairs": 3, "outputs": Model()(inputs)} | options
    given = {"inputs": inputs, "labels": labels} | given
    with pytest.raises(error, match=said) as raised:
        sdb.audit_guard(bare, (given["inputs"], given["labels"]), **options)
    assert "\n" not in str(raised.value)


def giving(value):
    return type("Odd", (Ridge,), {"predict": lambda self, inputs: value(inputs)})


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            giving(lambda inputs: np.zeros((3, 4))),
            r"predict gave float64 \(3, 4\); give labels \(\d+,\) or scores",
        ),
        (giving(lambda inputs: np.full((len(inputs), CLASSES), np.nan)), "predict gave NaN or infinity"),
        (giving(lambda inputs: np.full(len(inputs), 8)), "labels 8 to 8; classes are 0 to 7"),
        (giving(lambda inputs: np.full(len(inputs), 0.5)), r"predict gave float64 \(\d+,\)"),
        (giving(lambda inputs: np.full(len(inputs), "a")), "predict gave <U1"),
        (giving(lambda inputs: 1 // 0), "predict fails: ZeroDivisionError"),
        (lambda seed: 7, "gave a int; it must give an object with fit"),
        (lambda: Ridge(0), "fails to learn: TypeError"),
        (lambda seed: torch.nn.Linear(COLUMNS, 3), r"gave \(\d+, 3\); \(\d+, 8\) is needed"),
    ],
)
def test_students_that_do_not_work(guard, examples, student, said):
    with pytest.raises(ModelError, match=said):
        sdb.audit_guard(guard, examples, student=student, pairs=3, few=6)
