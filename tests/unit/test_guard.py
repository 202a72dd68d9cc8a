"""Guards: what is answered in place of any classifier's outputs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdb
from sdb.answers.compact import CompactRows
from sdb.answers.entries import query_bytes, query_of
from sdb.answers.guard import Guard, as_outputs, kind_of, logits_of
from sdb.answers.ledger import Ledger
from sdb.answers.levels import fit
from sdb.answers.rows import as_mask, honest_logits
from sdb.answers.ties import Ties, log_probabilities
from sdb.box.signing import SigningKey, sign_box, verify_box
from sdb.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    KeyFileError,
    ModelError,
    RunExistsError,
    StorageError,
)
from sdb.keys import Key, Owner
from sdb.runs.ties import new_ledger
from sdb.wrapping.guarded import decoys_of


def examples(classes=6, count=900, seed=0):
    """Probabilities float32 (N, C) that are right as often as they say, and labels."""
    rng = np.random.default_rng(seed)
    logits = 2.5 * rng.normal(size=(count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return shares.astype(np.float32), labels


@pytest.fixture(scope="module")
def owner():
    return Owner.generate()


@pytest.fixture(scope="module")
def made(owner):
    shares, labels = examples()
    return sdb.guard(None, (shares, labels), owner=owner, partners=("clinic",))


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_compact_rows_answer_as_rows_do(classes, levels, seed):
    rng = np.random.default_rng(seed)
    decoys = [
        sorted(rng.permutation([c for c in range(classes) if c != own])[: min(2, classes - 1)].tolist())
        for own in range(classes)
    ]
    told = rng.uniform(0.01, 1, (classes, levels)).astype(np.float32)
    edges = np.sort(rng.random((classes, levels - 1)).astype(np.float32), axis=1) + np.arange(
        levels - 1, dtype="f4"
    )
    compact = CompactRows(edges, told, np.array(decoys))
    named, sure = rng.integers(0, classes, 20), rng.random(20)
    level = compact.level(named, sure)
    assert (level == [(np.float32(s) > edges[n]).sum() for n, s in zip(named, sure, strict=True)]).all()
    expected = honest_logits(
        torch.from_numpy(named), torch.from_numpy(told[named, level]).double(), as_mask(decoys)
    )
    assert np.abs(compact.answers(named, sure) - expected.numpy()).max() < 1e-4


def test_a_guard_has_the_levels_that_a_box_would_have(owner):
    shares, labels = examples()
    guard = sdb.guard(None, (shares, labels), owner=owner)
    logits = torch.from_numpy(np.log(shares))
    box = fit(logits, torch.from_numpy(labels), guard.rows.decoys.tolist(), levels=2, bits=1.2)
    assert guard.info.levels == box.levels
    assert guard.info.measured["bits"] == pytest.approx(box.bits)
    answers = box.rows(logits).softmax(dim=1).numpy()
    assert guard.answer(shares) == pytest.approx(answers, abs=1e-5)


def test_the_class_stays_and_the_confidence_is_honest(made):
    shares, labels = examples(count=20_000, seed=1)
    told = made.answer(shares)
    assert told.dtype == shares.dtype
    assert (told.argmax(axis=1) == shares.argmax(axis=1)).all()
    assert told.sum(axis=1) == pytest.approx(1, abs=1e-5)
    right = shares.argmax(axis=1) == labels
    sure = told.max(axis=1)
    for each in np.unique(sure.round(6)):
        here = sure.round(6) == each
        if here.sum() > 300:
            assert right[here].mean() == pytest.approx(each, abs=0.08)
    assert made.info.measured["bits"] <= 1.2
    rows = {tuple(row) for row in told.round(6).tolist()}
    assert len(rows) <= 2 * 6


def test_logits_are_answered_by_logits(owner):
    shares, labels = examples()
    logits = np.log(shares) * 1.0 + 3
    guard = sdb.guard(None, (logits, labels), owner=owner)
    assert guard.info.gives == "logits"
    told = guard.answer(torch.from_numpy(logits))
    assert np.exp(told).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert (told.argmax(axis=1) == shares.argmax(axis=1)).all()


def test_decoys_are_the_owner_s_secret(made, owner):
    shares, _ = examples()
    logs = log_probabilities(logits_of(shares, "probabilities"))
    assert (decoys_of(owner, made.info.id, np.exp(logs), 2) == made.rows.decoys).all()
    assert (decoys_of(Owner.generate(), made.info.id, np.exp(logs), 2) != made.rows.decoys).any()


class Model:
    """Takes a list of texts."""

    classes_ = ("short", "middle", "long")

    def __init__(self):
        self.asked = []

    def predict_proba(self, texts):
        self.asked += texts
        size = np.array([len(text) for text in texts], dtype=float)
        scores = np.stack([-np.abs(size - at) for at in (2, 6, 12)], axis=1)
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def texts(count=400):
    rng = np.random.default_rng(0)
    found = ["x" * size for size in rng.integers(1, 16, count)]
    return found, np.array([0 if len(text) < 4 else 1 if len(text) < 9 else 2 for text in found])


def test_inputs_are_passed_through_unseen(owner):
    model, (inputs, labels) = Model(), texts()
    guard = sdb.guard(model, (inputs, labels), owner=owner, partners=("clinic",))
    assert model.asked == inputs
    assert guard.info.class_names == ("short", "middle", "long")
    assert guard(["abc", "abcdefghijklm"]).argmax(axis=1).tolist() == [0, 2]
    assert (guard.unlock(owner.partner("clinic"))(["abc"]) == Model().predict_proba(["abc"])).all()
    with pytest.raises(KeyFileError, match="does not open guard"):
        guard.unlock(owner.partner("other"))


def test_one_partner_s_key_is_enough():
    key, (inputs, labels) = Key.generate(), texts()
    guard = sdb.guard(Model(), (inputs, labels), key=key)
    assert guard.unlock(key) is guard.model
    assert guard.info.owner_id == Owner.of(key).id


def test_several_inputs_modules_and_output_objects(owner):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = torch.nn.Linear(4, 3), torch.nn.Dropout(0.9)

        def forward(self, left, right):
            return {"logits": self.drop(5 * self.layer(torch.cat([left, right], dim=1)))}

    rng = np.random.default_rng(0)
    inputs = {"left": rng.normal(size=(300, 1)).astype("f4"), "right": rng.normal(size=(300, 3)).astype("f4")}
    model = Two().train()
    with torch.no_grad():
        logits = 5 * model.layer(torch.from_numpy(np.concatenate(list(inputs.values()), axis=1)))
    guard = sdb.guard(model, (inputs, logits.argmax(dim=1).numpy()), owner=owner)
    assert model.training
    assert guard.info.measured["teacher_accuracy"] == 1.0


def test_pipelines_of_transformers_give_scores_by_label(owner):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)

    def pipeline(inputs):
        shares = [0.8 if each else 0.3 for each in inputs]
        scores = [[{"label": "no", "score": 1 - p}, {"label": "yes", "score": p}] for p in shares]
        return [sorted(each, key=lambda entry: -entry["score"]) for each in scores]

    guard = sdb.guard(pipeline, (labels.tolist(), labels), owner=owner, class_names=["no", "yes"])
    assert guard.info.measured["teacher_accuracy"] == 1.0
    assert guard([1, 0]).argmax(axis=1).tolist() == [1, 0]
    with pytest.raises(ModelError, match="give class_names"):
        sdb.guard(pipeline, (labels.tolist(), labels), owner=owner)


def test_saved_and_loaded_it_answers_the_same(made, tmp_path):
    shares, _ = examples(seed=2)
    made.save(tmp_path / "a.guard")
    assert sorted(each.name for each in (tmp_path / "a.guard").iterdir()) == ["guard.json", "rows.safetensors"]
    loaded = Guard.load(tmp_path / "a.guard")
    assert loaded.info == made.info
    assert (loaded.answer(shares) == made.answer(shares)).all()
    with pytest.raises(RunExistsError):
        made.save(tmp_path / "a.guard")
    with pytest.raises(ConfigError, match="has no model"):
        loaded(shares)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("rows.safetensors", lambda data: data[:-1] + b"\0", "was altered"),
        ("guard.json", lambda data: data.replace(b'"sdb_guard": 1', b'"sdb_guard": 2'), "update sdb"),
        ("guard.json", lambda data: data.replace(b'"gives": "probabilities"', b'"gives": "words"'), "gives is"),
        ("guard.json", lambda data: data[:40], "damaged"),
        (
            "guard.json",
            lambda data: json.dumps(json.loads(data) | {"class_names": ["a"]}).encode(),
            "other classes",
        ),
    ],
)
def test_damaged_guards_are_refused(made, tmp_path, file, change, said):
    made.save(tmp_path / "a.guard")
    path = tmp_path / "a.guard" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        Guard.load(tmp_path / "a.guard")


def test_what_it_says_of_itself_was_measured_on_other_examples(owner):
    """Rows that know the examples would look better than they are."""
    shares, labels = examples(classes=40, count=200)
    guard = sdb.guard(None, (shares, labels), owner=owner)
    same = guard.answer(shares).max(axis=1)
    right = shares.argmax(axis=1) == labels
    told, seen = guard.info.measured["keyless_brier"], ((same - right) ** 2).mean()
    more, truth = examples(classes=40, count=20_000, seed=5)
    real = ((guard.answer(more).max(axis=1) - (more.argmax(axis=1) == truth)) ** 2).mean()
    assert seen < told
    assert abs(told - real) < 0.05


def test_a_class_that_is_often_wrong_says_so(owner):
    """Where classes differ a lot, a class's own examples count for more than its level."""
    rng = np.random.default_rng(0)
    named = rng.integers(0, 10, 1500)
    labels = np.where((named < 5) & (rng.random(1500) < 0.8), (named + 1) % 10, named)
    shares = np.full((1500, 10), 0.1 / 9, dtype=np.float32)
    shares[np.arange(1500), named] = 0.9
    guard = sdb.guard(None, (shares, labels), owner=owner)
    told = guard.answer(shares).max(axis=1)
    assert told[named < 5].max() < 0.3
    assert told[named >= 5].min() > 0.95


def test_ten_thousand_classes(owner):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10_000, 60)
    shares = np.full((60, 10_000), 0.3 / 9_999, dtype=np.float32)
    shares[np.arange(60), labels] = 0.7
    guard = sdb.guard(None, (shares, labels), owner=owner)
    assert (guard.answer(shares).argmax(axis=1) == labels).all()
    assert guard.rows.decoys.shape == (10_000, 2)


def test_few_examples_give_one_level_and_no_ties(owner):
    shares, labels = examples(count=25)
    guard = sdb.guard(None, (shares, labels), owner=owner)
    assert guard.rows.levels == 1
    assert guard.info.measured["bits"] == 0
    assert "Ties: too few examples" in guard.summary()
    with pytest.raises(ConfigError, match="too few near ties"):
        guard.ties(owner)


def test_ties_are_the_owner_s(made, owner):
    ties = made.ties(owner)
    assert ties.box_id == made.info.id
    assert ties.tau == made.info.ties.tau > 0
    with pytest.raises(KeyFileError, match="is of owner"):
        made.ties(Owner.generate())


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "said"),
    [
        (np.full((40, 3), 0.9), np.zeros(40, int), ModelError, "do not sum to 1"),
        (np.full((40, 1), 0.9), np.zeros(40, int), ModelError, "regression"),
        (np.zeros((2, 10_001)), np.zeros(2, int), ModelError, "up to 10,000"),
        (np.full((40, 3), np.nan), np.zeros(40, int), ModelError, "NaN"),
        (np.full((40, 3), 1 / 3), np.full(40, 3), DataError, "classes are 0 to 2"),
        (np.full((40, 3), 1 / 3), np.zeros(39, int), DataError, "one per example"),
        (np.full((40, 3), 1 / 3), np.zeros(40), DataError, "whole numbers"),
    ],
)
def test_what_is_no_classifier_is_refused(owner, outputs, labels, error, said):
    with pytest.raises(error, match=said):
        sdb.guard(None, (outputs, labels), owner=owner)


def test_whose_guard_it_is_must_be_said(owner):
    shares, labels = examples(count=40)
    for whose in ({}, {"owner": owner, "key": Key.generate()}):
        with pytest.raises(ConfigError, match="whose guard"):
            sdb.guard(None, (shares, labels), **whose)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (np.full((2, 5), 0.2, dtype="f4"), "was made for"),
        (np.full((2, 6), np.nan, dtype="f4"), "NaN"),
        (np.full((2, 6), 0.5, dtype="f4"), "do not sum to 1"),
        (np.full((2, 6), -3.0, dtype="f4"), "gave logits"),
    ],
)
def test_outputs_that_it_was_not_calibrated_with_are_refused(made, outputs, said):
    with pytest.raises(ModelError, match=said):
        made.answer(outputs)


def test_what_outputs_are():
    assert kind_of(np.array([[0.2, 0.8]])) == "probabilities"
    assert kind_of(np.array([[0.2, 0.9]])) is None
    assert kind_of(np.array([[0.2, 3.0]])) == "logits"
    assert as_outputs(([[1, 2]],)).dtype == np.float64
    with pytest.raises(ModelError, match="array of outputs"):
        as_outputs("text")


@given(
    st.recursive(
        st.text() | st.binary() | st.sampled_from([np.arange(4), np.eye(2), np.array([True]), np.float32([1.5])]),
        lambda inner: st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
)
@settings(deadline=None)
def test_queries_of_any_kind_come_back(query):
    def same(left, right):
        if isinstance(left, dict):
            return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
        if isinstance(left, np.ndarray):
            return left.dtype == right.dtype and left.shape == right.shape and (left == right).all()
        return type(left) is type(right) and left == right

    assert same(query, query_of(query_bytes(query)))


def test_queries_that_cannot_be_kept():
    with pytest.raises(DataError, match="cannot be kept"):
        query_bytes(np.array([object()]))


def test_a_signature_holds_every_byte(made, tmp_path):
    path, key = tmp_path / "a.guard", SigningKey.generate()
    made.save(path)
    assert sign_box(path, key) == made.info.id == verify_box(path, key.public)
    assert Guard.load(path).info == made.info
    with pytest.raises(CheckpointError, match="signed already"):
        sign_box(path, key)
    with pytest.raises(CheckpointError, match="do not use it"):
        verify_box(path, SigningKey.generate().public)
    text = (path / "guard.json").read_bytes()
    (path / "guard.json").write_bytes(text.replace(b'"examples": 900', b'"examples": 999'))
    with pytest.raises(CheckpointError, match="was altered after it was signed"):
        verify_box(path, key.public)
    (path / "guard.json").write_bytes(text)
    (path / "more.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not part of this guard"):
        verify_box(path, key.public)
    made.save(path, overwrite=True)
    (path / "more.txt").unlink()
    with pytest.raises(CheckpointError, match="not signed"):
        verify_box(path, key.public)


def test_a_sequence_classifier_of_transformers(owner):
    """Token ids and their mask, by name; what it gives is an output object."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"num_labels": 3, "initializer_range": 0.5}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **sizes, **more)
    config.id2label = {0: "refund", 1: "order", 2: "other"}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(0, 50, (120, 12)), "attention_mask": np.ones((120, 12), dtype=np.int64)}
    with torch.inference_mode():
        logits = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
    guard = sdb.guard(model, (inputs, logits.argmax(dim=1).numpy()), owner=owner, partners=("clinic",))
    assert guard.info.class_names == ("refund", "order", "other")
    assert guard.info.measured["teacher_accuracy"] == 1.0
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    assert (guard(**tensors).argmax(axis=1) == logits.argmax(dim=1).numpy()).all()
    with torch.inference_mode():
        assert torch.equal(guard.unlock(owner.partner("clinic"))(**tensors).logits, logits)


def test_a_second_ledger_goes_with_the_ties_of_the_first(owner, tmp_path):
    owner.save(tmp_path / "owner.json")
    more = {"owner_file": tmp_path / "owner.json", "budget": 0.001, "keep_queries": True, "days": 1, "cap": 9}
    more |= {"dataset": None, "data_root": None, "other_class_names": False, "network": None}
    for name in ("one", "two"):
        sdb.guard(None, examples(), owner=owner, tie_budget=0.02).save(tmp_path / name)
    for number in (1, 2):
        new_ledger(tmp_path / "one", out=tmp_path / f"{number}.db", ties_file=tmp_path / "ties", **more)
    first, second = (Ledger(tmp_path / f"{number}.db") for number in (1, 2))
    assert first.terms.ties_id == second.terms.ties_id == Ties.load(tmp_path / "ties").id
    with pytest.raises(StorageError, match="of another box, owner or margin"):
        new_ledger(tmp_path / "two", out=tmp_path / "3.db", ties_file=tmp_path / "ties", **more)
    assert not (tmp_path / "3.db").exists()
