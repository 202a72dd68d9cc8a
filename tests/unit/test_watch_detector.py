"""The detector on digits, with a box that answers by class means: what it tells, and what it keeps."""

import json
import tracemalloc

import numpy as np
import pytest

import sdb.data
import sdb.service.watch.detector as detector_module
from sdb.answers.rows import decoy_logits
from sdb.errors import ConfigError, DataError
from sdb.service.watch.detector import Detector, fit_profile
from sdb.service.watch.profile import Profile


@pytest.fixture(scope="module")
def world():
    """Profile images, other ordinary images, and a box."""
    data = sdb.data.load("digits", validation_fraction=0.5)
    held, test, train = (
        np.asarray(part.images).astype(np.float32) / 255 for part in (data.validation, data.test, data.train)
    )
    means = np.stack([train[data.train.labels == label].mean(axis=0).ravel() for label in range(10)])

    def box(images):
        flat = images.reshape(len(images), -1)
        return (10 * (flat @ means.T) - 5 * (means**2).sum(axis=1)).astype(np.float32)

    return held, test, box


@pytest.fixture(scope="module")
def profile(world):
    held, _, box = world
    return fit_profile(held, box(held))


def told(profile, box, images, size=32, is_partner=False):
    """Kinds that were told of one principal."""
    detector = Detector(profile)
    return {
        finding.kind
        for start in range(0, len(images), size)
        for part in [images[start : start + size]]
        for finding in detector.look("someone", part, box(part), is_partner)
    }


def searching(images, blend, rounds, generator):
    """The same images under patterns that change in a twentieth of their pixels."""
    pattern, asked = generator.random((1, 8, 8)), []
    for _ in range(rounds):
        asked.append(blend * images + (1 - blend) * pattern)
        pattern = np.where(generator.random((1, 8, 8)) < 0.05, generator.random((1, 8, 8)), pattern)
    return np.concatenate(asked).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_ordinary_use_is_not_told_in_whatever_batches_it_comes(world, profile, size):
    _, test, box = world
    generator = np.random.default_rng(1)
    rows = generator.integers(0, len(test), 600)
    assert told(profile, box, test[rows], size) == set()
    few = generator.integers(0, 20, 1_200)
    assert told(profile, box, test[few], size) == set()


@pytest.mark.parametrize("blend", [0.9, 0.5])
def test_a_search_of_the_key_is_told_by_its_offsets(world, profile, blend):
    _, test, box = world
    asked = searching(test[:32], blend, 20, np.random.default_rng(2))
    assert "offset" in told(profile, box, asked)
    assert "offset" in told(profile, box, asked, is_partner=True)
    assert "offset" in told(None, box, asked)  # needs no profile


def test_a_search_hidden_among_ordinary_images_is_told(world, profile):
    _, test, box = world
    generator = np.random.default_rng(3)
    asked = searching(test[:32], 0.9, 20, generator).reshape(20, 32, 1, 8, 8)
    mixed = [part for one in asked for part in (one, test[generator.integers(0, len(test), 160)])]
    assert "offset" in told(profile, box, np.concatenate(mixed))


def test_the_same_images_with_noise_or_in_other_light_are_no_search(world, profile):
    _, test, box = world
    generator = np.random.default_rng(4)
    frames = np.repeat(test[:60], 8, axis=0)
    noise = generator.normal(0, 0.02, frames.shape)
    assert told(profile, box, (frames + noise).clip(0, 1).astype(np.float32)) == set()
    steps = np.tile([0.0, 0.03, 0.06, 0.09], 120)[:, None, None, None]
    assert "offset" not in told(profile, box, (0.8 * frames + steps).astype(np.float32))


def test_one_image_over_and_over_with_small_changes_is_told(world, profile):
    _, test, box = world
    assert "near_duplicates" in told(profile, box, searching(test[:1], 0.9, 1_100, np.random.default_rng(5)))


def test_noise_and_other_pictures_are_told_by_their_distance(world, profile):
    _, test, box = world
    generator = np.random.default_rng(6)
    assert "input" in told(profile, box, generator.random((200, 1, 8, 8), dtype=np.float32))
    assert "input" in told(profile, box, 1 - test[:200])
    assert "input" not in told(profile, box, 1 - test[:200], is_partner=True)  # keyed images are odd by design


def test_steps_of_one_length_are_told_by_the_distances(world, profile):
    """What PRADA is for: new queries made from old ones by a step of fixed length."""
    _, test, box = world
    generator, asked = np.random.default_rng(7), [test[:60]]
    for _ in range(3):
        known = np.concatenate(asked)
        signs = np.where(generator.random(known.shape) < 0.5, -1.0, 1.0)
        asked.append((known + 0.1 * signs).clip(0, 1).astype(np.float32))
    assert "distances" in told(profile, box, np.concatenate(asked))


def test_asking_for_a_training_set_is_told_once_it_covers_the_classes(world):
    held, test, box = world
    profile = fit_profile(held, box(held), coverage_images=300)
    assert "coverage" in told(profile, box, test)
    one_class = test[box(test).argmax(axis=1) == 3]
    assert told(profile, box, np.tile(one_class, (10, 1, 1, 1))) == set()
    assert "coverage" not in told(profile, box, np.tile(test[:100], (10, 1, 1, 1)))  # repeats are no new images


def test_what_can_never_be_told_is_not_judged(world):
    """Fixed answers of one level have one confidence for everything."""
    held, _, box = world
    rows = decoy_logits([[(label + step) % 10 for step in (1, 2, 3)] for label in range(10)], 8.0, 1.0)

    def fixed(images):
        return rows.numpy()[box(images).argmax(axis=1)]

    profile = fit_profile(held, fixed(held))
    assert profile.thresholds.keys() == {"input", "distances"}
    assert all(threshold < 1 for threshold in profile.thresholds.values())
    noise = np.random.default_rng(6).random((200, 1, 8, 8), dtype=np.float32)
    assert "input" in told(profile, fixed, noise)
    assert "answers" in fit_profile(held, box(held)).thresholds


def test_principals_are_told_apart(world, profile):
    _, test, box = world
    detector, asked = Detector(profile), searching(test[:32], 0.9, 20, np.random.default_rng(8))
    for number, start in enumerate(range(0, len(asked), 32)):
        part = asked[start : start + 32]
        assert detector.look(f"user{number}", part, box(part)) == []


def test_memory_does_not_grow_with_queries_nor_with_principals(world, profile, monkeypatch):
    _, test, box = world
    monkeypatch.setattr(detector_module, "MAX_SKETCHES", 4)
    detector, answers = Detector(profile), box(test)

    def ask(principals):
        for name in principals:
            for _ in range(4):
                detector.look(name, test, answers)

    ask(map(str, range(4)))
    tracemalloc.start()
    ask(map(str, range(8, 20)))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # As many sketches as before, made anew while measured.
    assert grown < 4 * 700_000
    assert detector.statistics("19") and not detector.statistics("8")


def test_a_profile_comes_back_from_its_file_and_holds_no_image(world, profile, tmp_path):
    held, test, _ = world
    path = tmp_path / "profile.json"
    profile.save(path)
    again = Profile.load(path)
    assert again.thresholds == profile.thresholds and again.near == profile.near
    assert np.allclose(
        again.scores(test.reshape(len(test), -1)), profile.scores(test.reshape(len(test), -1)), rtol=0.02
    )
    stored = json.loads(path.read_text())
    rows = [np.array(stored["mean"]), *np.array(stored["components"])]
    closest = min(float(np.abs(held.reshape(len(held), -1) - row).max(axis=1).min()) for row in rows)
    assert closest > 0.2  # no stored row is one of the images
    assert sum(np.size(value) for value in stored.values()) < 2_000


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"mean": None}, {"mean": ["nan"]}, {"near": [1]}, {"extra": 1}, None]
)
def test_a_damaged_profile_is_refused(profile, tmp_path, change):
    path = tmp_path / "profile.json"
    profile.save(path)
    values = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(values | change))
    with pytest.raises(ConfigError, match="sdb token profile"):
        Profile.load(path)
    with pytest.raises(ConfigError):
        Profile.load(tmp_path / "none.json")


def test_too_few_images_or_answers_or_images_of_another_size_are_refused(world, profile):
    held, _, box = world
    with pytest.raises(DataError, match="at least 200"):
        fit_profile(held[:100], box(held[:100]))
    with pytest.raises(DataError, match="300 images and 299"):
        fit_profile(held[:300], box(held[:299]))
    with pytest.raises(DataError, match="sdb token profile"):
        Detector(profile).look("someone", np.zeros((4, 1, 6, 6), np.float32), np.zeros((4, 10), np.float32))
