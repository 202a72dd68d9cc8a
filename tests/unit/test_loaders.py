"""Data as people have them: loaders, datasets, arrays and folders at the door of wrap, distill, train and audit."""

from __future__ import annotations

import copy
import itertools
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import sdb.data
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import LoaderBatches, LoaderSplits, Splits, as_data, as_images, as_splits, from_loaders
from sdb.distillation import distill
from sdb.errors import ConfigError, DataError
from sdb.keys import Key
from sdb.training.batches import check_batches, train_batches
from sdb.training.evaluation import class_mean_outputs, evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.training.repeated_views import repeated
from sdb.wrapping.own_loop import Wrapping
from sdb.wrapping.tuning import wrap_within_budget
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
MEAN, STD = (0.31,), (0.27,)


def floats(part):
    """A part of `Splits` as float images in [0, 1] and labels."""
    return torch.from_numpy(np.array(part.images)).float() / 255, torch.from_numpy(part.labels)


class Pictures(Dataset):
    """Images one by one, as a transform leaves them."""

    def __init__(self, part, transform=None, classes=None):
        self.images, self.labels, self.transform = np.asarray(part.images), part.labels, transform
        if classes is not None:
            self.classes = list(classes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        image = Image.fromarray(self.images[number, 0])
        return (image if self.transform is None else self.transform(image)), int(self.labels[number])


class Streamed(IterableDataset):
    """The same, one after another."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return (self.samples[number] for number in range(len(self.samples)))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).float().unsqueeze(0) / 255


def normalised(image):
    return (to_tensor(image) - MEAN[0]) / STD[0]


def halves(image):
    return to_tensor(image).half()


def as_dictionaries(samples):
    return [{"pixel_values": to_tensor(image), "labels": label, "path": "x.png"} for image, label in samples]


def loader(part, *, transform=to_tensor, **options):
    return DataLoader(Pictures(part, transform), **{"batch_size": 16} | options)


FORMS = {
    "loader": lambda part: loader(part),
    "shuffled loader with two workers": lambda part: loader(part, shuffle=True, num_workers=2),
    "loader of 8 bits": lambda part: loader(part, transform=lambda image: torch.from_numpy(np.array(image))),
    "loader of normalised images": lambda part: loader(part, transform=normalised),
    "loader of half floats": lambda part: loader(part, transform=halves),
    "loader of dictionaries": lambda part: DataLoader(as_dictionaries(Pictures(part)), 16),
    "loader of lists of samples": lambda part: DataLoader(Pictures(part), 16, collate_fn=list),
    "loader of float tensors": lambda part: DataLoader(TensorDataset(*floats(part)), 16),
    "dataset of PIL images": lambda part: Pictures(part),
    "dataset of arrays": lambda part: Pictures(part, np.array),
    "iterable dataset": lambda part: Streamed(Pictures(part)),
    "loader of an iterable dataset": lambda part: DataLoader(Streamed(Pictures(part, to_tensor)), 16),
    "list of batches that is no list": lambda part: Batched(loader(part)),
    "list of samples": lambda part: [Pictures(part)[number] for number in range(len(part))],
    "float arrays": lambda part: tuple(each.numpy() for each in floats(part)),
    "8-bit arrays, channels last": lambda part: (np.asarray(part.images).transpose(0, 2, 3, 1), part.labels),
    "8-bit tensors": lambda part: TensorDataset(
        *(torch.from_numpy(np.array(each)) for each in (part.images, part.labels))
    ),
}


class Batched:
    """A loader that is no DataLoader."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_images_gives_the_same_accuracy_and_the_same_means(few, make_net, form):
    made = from_loaders(*(FORMS[form](part) for part in (few.train, few.validation)), mean=MEAN, std=STD)
    assert isinstance(made, Splits if "8-bit" in form else LoaderSplits)
    assert (made.image_shape, made.num_classes, len(made.train), len(made.validation)) == ((1, 8, 8), 10, 48, 40)
    model = make_net(few)
    same = evaluate(model, evaluation_batches(few.validation, CPU))
    assert evaluate(model, evaluation_batches(made.validation, CPU)) == pytest.approx(same, abs=1e-2)
    means = [class_mean_outputs(model, evaluation_batches(part, CPU), 10) for part in (few.train, made.train)]
    assert torch.allclose(*means, atol=1e-2, equal_nan=True)
    batch = next(train_batches(made, TrainSettings(**QUICK), CPU).epoch(0))
    assert (batch.images.dtype, batch.labels.dtype, len(batch.images)) == (torch.float32, torch.int64, 16)
    assert batch.images.min() >= 0 and batch.images.max() <= 1


def test_mean_and_deviation_of_a_loader_s_pixels_are_those_of_its_arrays(digits):
    mean, std = digits.mean, digits.std
    for transform, given in ((to_tensor, {}), (normalised, {"mean": MEAN, "std": STD})):
        made = from_loaders(loader(digits.train, transform=transform), loader(digits.validation), **given)
        measured = made.train.mean, made.train.std
        assert np.allclose(measured, (mean, std), atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


def test_one_trains_wraps_and_distils_on_loaders(digits, make_net):
    data = tuple(
        loader(part, batch_size=32, shuffle=part is digits.train) for part in (digits.train, digits.validation)
    )
    settings = {"epochs": 6, "learning_rate": 0.01, "schedule": "one_cycle", "optimizer": "adam"}
    teacher = make_net(digits)
    history = train(teacher, data, TrainSettings(**settings))
    assert evaluate(teacher, evaluation_batches(digits.validation, CPU))["accuracy"] > 0.7
    key = Key(bytes(32), kind="weight")
    records = []
    box = wrap(teacher, data, WrapSettings(**settings), key=key, history=records)
    keyed = evaluate(box.unlock(key), evaluation_batches(digits.test, CPU))["accuracy"]
    assert keyed > 0.7
    assert records[-1]["validation"]["keyed_accuracy"] > 0.7
    student = make_net(digits, seed=1)
    distil = DistillSettings(**settings)
    learnt = []
    assert distill(box, student, data, distil, key=key, history=learnt) is student
    assert len(learnt) == len(history) == 6
    assert evaluate(student, evaluation_batches(digits.test, CPU))["accuracy"] > 0.5


def test_workers_that_stay_serve_every_epoch(few, make_net):
    data = tuple(
        loader(part, num_workers=2, persistent_workers=True, shuffle=True) for part in (few.train, few.validation)
    )
    records = []
    wrap(make_net(few), data, WrapSettings(**QUICK), key=Key(bytes(32), kind="weight"), history=records)
    assert len(records) == 2


def test_one_s_own_loop_ends_with_a_box_that_is_measured_on_a_loader(few, make_net):
    net = make_net(few)
    wrapping = Wrapping(net, key=Key(bytes(32), kind="weight"), num_classes=10)
    box = wrapping.finish(loader(few.validation))
    expected = evaluate(net, evaluation_batches(few.validation, CPU))["accuracy"]
    assert box.info.measured["teacher_accuracy"] == pytest.approx(expected)
    assert box.info.measured["images"] == 40
    assert as_images(few) is few.validation
    with pytest.raises(DataError, match="^validation, batch 0: images without labels"):
        wrapping.finish(DataLoader(floats(few.validation)[0], 8))


def test_a_bare_module_and_a_loader_that_normalise_alike_make_a_box_of_pixels(few):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    data = tuple(loader(part, transform=normalised) for part in (few.train, few.validation))
    records = []
    key = Key(bytes(32), kind="weight")
    box = wrap(net, data, WrapSettings(**QUICK), key=key, mean=MEAN, std=STD, history=records)
    assert torch.equal(box.classifier.mean.flatten(), torch.tensor(MEAN))
    pixels, labels = floats(few.validation)
    right = (box.unlock(key)(pixels).argmax(dim=1) == labels).float().mean()
    assert records[-1]["validation"]["keyed_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_a_budget_is_kept_on_loaders(few, make_net):
    data = from_loaders(loader(few.train), loader(few.validation))
    key, settings = Key(bytes(32), kind="weight"), WrapSettings(**QUICK)
    teacher = make_net(few)

    def make_box(chosen):
        return wrap(teacher, data, chosen, key=key)

    choice = wrap_within_budget(
        make_box,
        teacher,
        key,
        data,
        settings,
        lambda: make_net(few, seed=1),
        DistillSettings(**QUICK),
        ladder=({},),
    )
    assert len(choice.trials) == 1


@pytest.mark.parametrize("method", ["sdb", "nasty"])
def test_every_method_takes_loaders(few, make_net, method):
    settings = WrapSettings(method=method, **QUICK)
    key = Key(bytes(range(32)), blend=0.5) if method == "sdb" else None
    box = wrap(make_net(few), (loader(few.train), loader(few.validation)), settings, key=key)
    assert box(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_loader_s_sampler_batches_and_augmentation_are_obeyed(few):
    calls = []

    def darker(image):
        calls.append(1)
        return to_tensor(image) / 2

    only = [3, 5, 8] * 4
    made = from_loaders(
        DataLoader(Pictures(few.train, darker), 5, sampler=only), few.validation, class_names=few.class_names
    )
    batches = train_batches(made, TrainSettings(**QUICK), CPU)
    before = len(calls)
    epoch = list(batches.epoch(0))
    assert [len(batch.images) for batch in epoch] == [5, 5, 2]
    assert len(batches) == 3
    assert len(calls) - before == 12
    assert torch.cat([batch.labels for batch in epoch]).tolist() == few.train.labels[only].tolist()
    assert torch.equal(epoch[0].images[0], floats(few.train)[0][3] / 2)


def test_a_sampler_hears_of_the_epoch(few):
    class Told(torch.utils.data.Sampler):
        heard = -1

        def __iter__(self):
            return iter(range(20))

        def __len__(self):
            return 20

        def set_epoch(self, epoch):
            Told.heard = epoch

    made = as_data(DataLoader(Pictures(few.train, to_tensor), 5, sampler=Told()), 10)
    list(train_batches(made, TrainSettings(**QUICK), CPU).epoch(7))
    assert Told.heard == 7


def test_a_dataset_gets_a_new_order_each_epoch_from_the_seed_alone(few):
    made = as_data((Pictures(few.train), few.validation))

    def labels(seed, epoch):
        batches = train_batches(made, TrainSettings(**QUICK, seed=seed), CPU)
        return torch.cat([batch.labels for batch in batches.epoch(epoch)]).tolist()

    orders = [labels(0, 0), labels(0, 1), labels(1, 0)]
    assert labels(0, 0) == orders[0]
    assert all(first != second for first, second in itertools.combinations(orders, 2))
    assert all(sorted(order) == sorted(few.train.labels.tolist()) for order in orders)


def test_which_path_is_taken_is_said_once(few, caplog):
    with caplog.at_level(logging.INFO, logger="sdb"):
        as_data((loader(few.train), few.validation, Pictures(few.test)))
    (said,) = [record.message for record in caplog.records if record.message.startswith("data: ")]
    assert "48 images 1x8x8 of a loader" in said
    assert "40 uint8 images 1x8x8, batches are made here" in said
    assert "40 images 1x8x8 of a dataset" in said


# --- parts and classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["loader", "dataset of PIL images", "list of samples", "8-bit tensors", "float arrays"]
)
def test_a_tenth_is_held_out_for_validation_always_the_same(digits, form):
    first, second = (as_data(FORMS[form](digits.train), 10) for _ in range(2))
    assert len(first.validation) == 23
    assert len(first.train) == 210
    assert not first.test

    def rows(part):
        return {
            tuple(row)
            for batch in evaluation_batches(part, CPU).epoch(0)
            for row in batch.images.flatten(1).tolist()
        }

    held, kept = rows(first.validation), rows(first.train)
    assert held == rows(second.validation)
    assert not held & kept
    assert held | kept == {tuple(row) for row in floats(digits.train)[0].flatten(1).tolist()}


def test_held_out_images_are_in_none_of_a_sampler_s_batches(digits):
    weights = WeightedRandomSampler(torch.ones(len(digits.train)), 500)
    made = as_data(DataLoader(Pictures(digits.train, to_tensor), 16, sampler=weights), 10)
    held, drawn = (
        {
            tuple(row)
            for batch in evaluation_batches(part, CPU).epoch(0)
            for row in batch.images.flatten(1).tolist()
        }
        for part in (made.validation, made.train)
    )
    assert len(held) == 23
    assert not held & drawn
    assert 400 < len(made.train) < 490


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("train", "val", "test"), ("test", "train", "valid")]
)
def test_parts_come_as_a_tuple_or_by_name(few, names):
    roles = {"train": few.train, "test": few.test}
    made = as_data({name: loader(roles.get(name, few.validation)) for name in names})
    assert len(made.train) == 48
    assert (len(made.validation), len(made.test)) == (40, 40)
    three = as_data((loader(few.train), loader(few.validation), loader(few.test)))
    assert len(three.test) == 40


def test_class_names_are_the_dataset_s_own_or_those_given(few):
    words = [f"class {number}" for number in range(10)]
    own = DataLoader(Pictures(few.train, to_tensor, words), 16)
    assert as_data((own, few.validation)).class_names == tuple(words)
    assert as_data((own, few.validation), 10).class_names == tuple(words)
    assert as_data((own, few.validation), 12).class_names == tuple(map(str, range(12)))
    assert as_data(own).class_names == tuple(words)  # also of a subset
    assert from_loaders(own, few.validation, class_names=range(11)).num_classes == 11
    assert as_data((loader(few.train), few.validation)).class_names == tuple(map(str, range(10)))
    with pytest.raises(DataError, match="two classes are called 'x'"):
        from_loaders(own, class_names="x" * 10)


def test_objects_of_datasets_come_as_they_are_or_through_the_caller_s_transform(few):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=few.class_names)})
    table = datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(image[0]) for image in np.asarray(few.train.images)],
            "label": few.train.labels,
        },
        features=features,
    )
    parts = datasets.DatasetDict({"train": table, "validation": table, "test": table})
    for plain in (parts, table):
        made = as_data(plain)
        assert isinstance(made, Splits)
        assert made.class_names == few.class_names
    mine = parts.with_transform(
        lambda rows: {"pixel_values": [to_tensor(i) for i in rows["image"]], "labels": rows["label"]}
    )
    for given in (mine, mine["train"], (mine["train"], mine["test"])):
        made = as_data(given)
        assert isinstance(made, LoaderSplits)
        assert made.class_names == few.class_names
    streamed = as_data((table.to_iterable_dataset(), table.to_iterable_dataset()))
    assert len(streamed.train) == 48
    assert torch.allclose(next(LoaderBatches(streamed.train, "cpu").epoch()).images[0], floats(few.train)[0][0])


def test_a_folder_s_path_is_taken_and_a_data_set_s_name_is_not(tmp_path, few):
    for number, image in enumerate(np.asarray(few.train.images)):
        place = tmp_path / "all" / f"c{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{number}.png")
    for path in (tmp_path / "all", str(tmp_path / "all")):
        assert as_data(path).class_names == ("c0", "c1")
    with pytest.raises(ConfigError, match=r"load_data\('digits'\)"):
        as_data("digits")


def test_an_audit_gets_arrays_and_is_refused_without_test_images(few):
    parts = [loader(few.train), Pictures(few.validation), loader(few.test, transform=to_tensor)]
    made = as_splits(tuple(parts))
    for name in ("train", "validation", "test"):
        assert np.array_equal(np.asarray(getattr(made, name).images), np.asarray(getattr(few, name).images))
        assert np.array_equal(getattr(made, name).labels, getattr(few, name).labels)
    assert as_splits(few) is few
    for without in (tuple(parts[:2]), (few.train, few.validation)):
        with pytest.raises(ConfigError, match="no test images"):
            sdb.audit(None, without)


# --- bad input -------------------------------------------------------------------------------------------------------

IMAGES, LABELS = torch.rand(32, 3, 8, 8), torch.arange(32) % 4


def batches(images=IMAGES, labels=LABELS, size=8):
    """A loader of these, in as many kinds of batches as there are."""
    return DataLoader(list(zip(images, labels, strict=True)), size)


class Once(IterableDataset):
    """Gives its samples once: they are a generator's."""

    def __init__(self):
        self.samples = ((image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True))

    def __iter__(self):
        yield from self.samples


class Broken(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, number):
        raise OSError(f"disk gone at {number}")


def of_two_shapes(count):
    return [(torch.rand(3, 8 + number // 16, 8), number % 4) for number in range(count)]


BAD = {
    "no labels": (lambda: DataLoader(IMAGES, 8), DataError, "batch 0: images without labels.*pairs"),
    "no labels in a tuple": (lambda: DataLoader(TensorDataset(IMAGES), 8), DataError, "without labels"),
    "an array alone": (lambda: IMAGES.numpy(), ConfigError, r"without labels: give a pair \(images, labels\)"),
    "no labels, one by one": (lambda: list(IMAGES), DataError, "without labels"),
    "labels of None": (
        lambda: [(each, None) for each in IMAGES],
        DataError,
        "labels of type NoneType.*number the",
    ),
    "labels in words": (lambda: [(each, "cat") for each in IMAGES], DataError, "labels of type str.*number the"),
    "labels in words, by batch": (lambda: batches(labels=["cat"] * 32), DataError, "labels of type str"),
    "unclear dictionary": (
        lambda: DataLoader([{"x": each, "y": 1} for each in IMAGES], 8),
        DataError,
        "dictionary with 'x', 'y'.*pixel_values.*labels.*rename",
    ),
    "two labels in a dictionary": (
        lambda: [{"image": each, "label": 1, "labels": 2} for each in IMAGES],
        DataError,
        "dictionary with 'image', 'label', 'labels'",
    ),
    "an object": (lambda: Batched([Outputs()]), DataError, "batch 0: a Outputs"),
    "label too large": (
        lambda: DataLoader(TensorDataset(IMAGES, LABELS + 1), 8, drop_last=True),
        DataError,
        "label 4 is outside 0..3",
    ),
    "negative label": (lambda: batches(labels=LABELS - 1), DataError, "label -1.*from 0"),
    "float labels": (lambda: batches(labels=LABELS.float()), DataError, r"labels of torch.float32.*\.long"),
    "boolean labels": (lambda: batches(labels=LABELS > 1), DataError, r"labels of torch.bool.*\.long"),
    "one-hot labels": (
        lambda: batches(labels=nn.functional.one_hot(LABELS, 4)),
        DataError,
        r"labels \(8, 4\).*argmax\(1\)",
    ),
    "fewer labels than images": (
        lambda: Batched([(IMAGES, LABELS[:5])]),
        DataError,
        r"labels \(5,\) for 32 images",
    ),
    "one image without a batch axis": (
        lambda: Batched([(IMAGES[0], LABELS[0])] * 4),
        DataError,
        "one label: expected batches",
    ),
    "empty list": (list, DataError, "it is empty"),
    "empty loader": (lambda: DataLoader([], 8), DataError, "it is empty"),
    "empty iterable": (lambda: Batched([]), DataError, "it is empty"),
    "empty arrays": (lambda: (np.zeros((0, 3, 8, 8), "uint8"), np.zeros(0, int)), DataError, "not empty"),
    "a generator": (lambda: ((IMAGES, LABELS) for _ in range(3)), ConfigError, "read only once.*DataLoader"),
    "an iterator": (lambda: iter(batches()), ConfigError, "read only once"),
    "a dataset that is a generator": (Once, ConfigError, "read only once"),
    "a loader of such": (lambda: DataLoader(Once(), 8), ConfigError, "read only once"),
    "two shapes": (lambda: of_two_shapes(32), DataError, r"images of \(3, 9, 8\) follow images of \(3, 8, 8\)"),
    "two shapes, batch by batch": (
        lambda: DataLoader(of_two_shapes(32), 16),
        DataError,
        r"batch 1: images of \(3, 9, 8\) follow.*resize",
    ),
    "two shapes in a batch": (lambda: DataLoader(of_two_shapes(32), 32), DataError, "equal size.*resize all"),
    "grey among colours": (
        lambda: [(Image.new(mode, (8, 8)), 0) for mode in ("RGB", "L")],
        DataError,
        r"\(1, 8, 8\) follow images of \(3, 8, 8\).*RGB",
    ),
    "PIL images in a loader": (
        lambda: DataLoader([(Image.new("L", (8, 8)), 0)] * 8, 4),
        DataError,
        r"batch 0 cannot be read.*ToTensor\(\).*dataset itself",
    ),
    "tokens": (lambda: batches(torch.randint(0, 99, (32, 12))), DataError, "images only, for now"),
    "tokens in a dictionary": (
        lambda: DataLoader([{"input_ids": LABELS, "label": 1}] * 8, 4),
        DataError,
        "images only, for now",
    ),
    "text": (lambda: [("some words", 1)] * 8, DataError, "images only, for now"),
    "text without labels": (lambda: ["some words"] * 8, DataError, "images only, for now"),
    "text in a loader": (lambda: DataLoader([("some words", 1)] * 8, 4), DataError, "images only, for now"),
    "a table": (lambda: batches(torch.rand(32, 5)), DataError, "images only, for now"),
    "a table of floats": (lambda: (np.random.rand(32, 5), LABELS.numpy()), DataError, "images only, for now"),
    "a data frame": (
        lambda: pytest.importorskip("pandas").DataFrame({"a": [1]}),
        ConfigError,
        "images only, for now",
    ),
    "video": (lambda: batches(torch.rand(32, 4, 3, 8, 8)), DataError, "images only, for now"),
    "integer pixels": (lambda: batches((IMAGES * 255).long()), DataError, "images of torch.int64.*uint8"),
    "pixels up to 255": (lambda: batches(IMAGES * 255), ConfigError, r"\[.*25\d\].*divide by 255"),
    "pixels a little outside": (lambda: batches(IMAGES * 1.2 - 0.1), ConfigError, r"clamp\(0, 1\)"),
    "normalised pixels": (
        lambda: batches(IMAGES * 4 - 2),
        ConfigError,
        r"train: images lie in \[-(2|1\.99?\d?), (2|1\.99?\d?)\].*drop Normalize.*mean= and std=",
    ),
    "not a number": (lambda: batches(IMAGES / 0 * 0), DataError, "not finite"),
    "a failing dataset": (lambda: Broken(), DataError, "batch 0 cannot be read: OSError: disk gone at 0"),
    "a failing loader": (
        lambda: DataLoader(Broken(), 8, num_workers=1),
        DataError,
        "batch 0 cannot be read: OSError.*disk gone",
    ),
    "something else": (lambda: 5, ConfigError, "train: a int: expected a DataLoader"),
    "a function": (lambda: batches, ConfigError, "train: a function: expected a DataLoader"),
    "nothing": (lambda: None, ConfigError, "train: a NoneType: expected a DataLoader"),
}


class Outputs:
    """An output object that is no pair."""

    images = IMAGES


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_naming_the_argument_and_the_remedy(fault):
    make, kind, words = BAD[fault]
    with pytest.raises(kind, match=r"(?s)" + words) as caught:
        from_loaders(make(), batches(), class_names="abcd")
    assert str(caught.value).startswith(("train", "labels of train"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault", ["label too large", "two shapes", "normalised pixels", "empty loader", "a generator"]
)
def test_a_bad_validation_part_is_refused_by_its_name(fault):
    make, kind, words = BAD[fault]
    with pytest.raises(kind, match=f"^validation.*{words.removeprefix('train: ')}"):
        from_loaders(batches(), make(), class_names="abcd")


def test_bad_input_of_the_calls_is_refused_before_training(few, make_net):
    teacher = make_net(few)
    before = copy.deepcopy(teacher.state_dict())
    normal = tuple(loader(part, transform=normalised) for part in (few.train, few.validation))
    late = loader(
        few.train, transform=None, collate_fn=lambda rows: (to_tensor(rows[0][0])[None], [rows[0][1] + 9])
    )
    calls = (
        lambda data: train(teacher, data, TrainSettings(**QUICK)),
        lambda data: wrap(teacher, data, WrapSettings(**QUICK), key=Key(bytes(32), kind="weight")),
        lambda data: distill(teacher, teacher, data, DistillSettings(**QUICK)),
        lambda data: sdb.audit(None, data),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"data \(train\): images lie in.*Normalize"):
            call(normal)
        with pytest.raises(DataError, match="data .train., batch .*label .* outside 0..9"):
            call((late, few.validation) if call is not calls[-1] else with_labels(few))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def with_labels(few):
    """Parts whose names say that there are ten classes, and a label says that there are more."""
    pictures = Pictures(few.train, to_tensor, range(10))
    pictures.labels = pictures.labels + 5
    return DataLoader(pictures, 8), few.validation, few.test


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Streamed([(each, 0) for each in IMAGES]), "no validation images can be held out of an iterable"),
        (lambda: Batched(batches()), "held out of a loader of this kind: give validation"),
        (lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=None), "held out of a loader of this kind"),
        (
            lambda: {"train": batches(), "x": batches()},
            "dictionary with 'train', 'x': expected train, validation and",
        ),
        (lambda: {"test": batches()}, "dictionary with 'test': expected train"),
        (
            lambda: {"val": batches(), "train": batches(), "valid": batches()},
            "expected train, validation and test",
        ),
        (lambda: (batches(),), "a tuple of 1"),
        (lambda: (batches(),) * 4, "a tuple of 4"),
    ],
)
def test_parts_that_are_missing_or_unclear_are_refused(data, words):
    with pytest.raises(ConfigError, match=rf"^data.*{words}"):
        as_data(data())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": (0.5,)}, "mean and std: give both or neither"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "2 and 2 values for 1 channels"),
        ({"mean": (0.5,), "std": (0.0,)}, "std .*above 0"),
        ({"mean": (0.9,), "std": (0.9,)}, "when mean and std are undone.*Normalize has"),
    ],
)
def test_a_mean_and_std_that_do_not_undo_are_refused(few, given, words):
    with pytest.raises(ConfigError, match=words):
        from_loaders(loader(few.train, transform=normalised), few.validation, **given)


def test_labels_with_gaps_and_parts_of_two_shapes_are_refused():
    with pytest.raises(DataError, match="number the 4 classes from 0, or name all 7"):
        from_loaders(batches(labels=LABELS * 2), batches())
    with pytest.raises(DataError, match=r"validation: images are \(3, 9, 9\), training images \(3, 8, 8\)"):
        from_loaders(batches(), batches(torch.rand(32, 3, 9, 9)))


def test_what_goes_wrong_in_a_later_epoch_is_said_too(few):
    passes = []

    class Fails(Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, number):
            passes.append(number)
            late = len(passes) > 60  # all were read once, and a few once more
            return torch.full((1, 8, 8), 3.0 if late else 0.5), number % 2

    made = as_data((DataLoader(Fails(), 8), few.validation), 10)
    batches = train_batches(made, TrainSettings(**QUICK), CPU)
    with pytest.raises(ConfigError, match=r"data \(train\): images lie in \[.*, 3\]"):
        list(itertools.chain.from_iterable(batches.epoch(number) for number in range(4)))


def test_a_lone_image_in_a_loader_s_last_batch_is_refused_where_the_network_cannot_learn_from_it(few, make_net):
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

        def forward(self, images):
            return self.layers(images)

    def check(**options):
        check_batches(Vectors(), as_data((loader(few.train, **options), few.validation), 10), TrainSettings())

    with pytest.raises(ConfigError, match="a batch of the loader has 1.*drop_last"):
        check(batch_size=47)
    check(batch_size=47, drop_last=True)
    check(batch_size=46)


def test_views_are_the_loader_s_own_affair(few):
    made = as_data((loader(few.train), few.validation))
    batches = train_batches(made, TrainSettings(**QUICK), CPU)
    assert repeated(batches, None) is batches
    with pytest.raises(ConfigError, match="views 3: the loader makes the views"):
        repeated(batches, 3)


def test_a_random_transform_of_validation_images_is_said(few, caplog):
    def noisy(image):
        return (to_tensor(image) + 0.1 * torch.rand(1, 8, 8)).clamp(0, 1)

    caplog.set_level(logging.WARNING, "sdb")  # which path is taken is said too, below that
    as_data((Pictures(few.train, noisy), Pictures(few.validation, to_tensor)))
    assert not caplog.records
    as_data((Pictures(few.train), Pictures(few.validation, noisy)))
    assert "data (validation): its images change from pass to pass (a random transform)" in caplog.text


def test_several_processes_are_refused(few, make_net, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="loaders and datasets feed one process, and there are 2"):
        check_batches(make_net(few), as_data((loader(few.train), few.validation)), TrainSettings(**QUICK))
