"""Guards of scikit-learn's estimators, as they come."""

import numpy as np
import pytest

import sdb
from sdb.errors import DataError, ModelError
from sdb.keys import Owner

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

OWNER = Owner(bytes(range(32)))
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


@pytest.fixture(scope="module")
def images():
    """Images and labels: to learn from, for the calibration, and the rest."""
    found, labels = load_digits(return_X_y=True)
    return [(found[rows] / 16, labels[rows]) for rows in (slice(800), slice(800, 1500), slice(1500, None))]


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(20, random_state=0),
        HistGradientBoostingClassifier(max_iter=5, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=100)),
    ],
    ids=["forest", "boosting", "pipeline"],
)
def test_an_estimator_is_guarded(images, tmp_path, model):
    learned, calibration, (rest, _) = images
    model.fit(*learned)
    guard = sdb.guard(model, calibration, owner=OWNER, partners=("clinic",))
    own = model.predict_proba(rest)
    assert (guard.unlock(OWNER.partner("clinic"))(rest) == own).all()
    told = guard(rest)
    assert (told.argmax(axis=1) == own.argmax(axis=1)).all()
    assert len(np.unique(told, axis=0)) <= 20
    assert guard.info.measured["keyless_calibration_error"] < 0.1
    guard.save(tmp_path / "model.guard")
    assert (sdb.Guard.load(tmp_path / "model.guard", model=model)(rest) == told).all()


def test_labels_are_what_the_estimator_was_fitted_with(images):
    (learned, labels), (inputs, truth), _ = images
    found = []
    for named in (lambda y: y, lambda y: NAMES[y], lambda y: y + 1, lambda y: NAMES[y].astype(object)):
        model = RandomForestClassifier(20, random_state=0).fit(learned, named(labels))
        found.append(sdb.guard(model, (inputs, named(truth)), owner=OWNER))
    assert [guard.info.class_names[0] for guard in found] == ["0", "eight", "1", "eight"]
    for guard in found:
        assert guard.info.measured["teacher_accuracy"] > 0.85
    with pytest.raises(DataError, match="'ten' is no class of the model's: eight, five"):
        sdb.guard(model, (inputs, np.full(len(inputs), "ten")), owner=OWNER)


def test_an_estimator_without_probabilities_is_refused(images):
    (learned, labels), calibration, _ = images
    with pytest.raises(ModelError, match="LinearSVC has no predict_proba"):
        sdb.guard(LinearSVC().fit(learned, labels), calibration, owner=OWNER)
