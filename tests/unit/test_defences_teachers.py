"""Teachers that are trained to teach badly: switched off they are plain training, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdb.audit.defences.sparse_teacher import AdversarialSparse, adversarial, with_adversarial
from sdb.audit.defences.teachers import Centroids, ClusterCollapse, LabelSmoothed
from sdb.config import FitSettings, TrainSettings
from sdb.data import Augment, ImageSet
from sdb.training.loop import train, train_batches
from sdb.wrapping.networks import fresh_copy

QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
SETTINGS = FitSettings(**QUICK)
OFF = [ClusterCollapse(cluster_weight=0.0), AdversarialSparse(share=0.0, steps=2), LabelSmoothed(smoothing=0.0)]
ON = [ClusterCollapse(), AdversarialSparse(steps=2), LabelSmoothed()]


@pytest.fixture(scope="module")
def plain(few, make_net, weights_of):
    network = fresh_copy(make_net(few), SETTINGS, "defence")
    train(network, few, TrainSettings(**QUICK))
    return weights_of(network)


@pytest.mark.parametrize("defence", OFF, ids=lambda each: each.name)
def test_without_its_term_a_defence_is_plain_training(
    few, make_net, weights_of, same_weights, tmp_path, plain, defence
):
    teacher = make_net(few)
    defence.build(teacher, few, SETTINGS, tmp_path)
    assert same_weights(weights_of(defence.load(teacher, tmp_path).network), plain)


@pytest.mark.parametrize("defence", ON, ids=lambda each: each.name)
def test_with_its_term_it_is_not(few, make_net, weights_of, same_weights, tmp_path, plain, defence):
    teacher = make_net(few)
    defence.build(teacher, few, SETTINGS, tmp_path)
    defended = defence.load(teacher, tmp_path)
    assert not same_weights(weights_of(defended.network), plain)
    assert defended.keyless is defended.network  # the protection is in the weights


def test_clusters_are_tighter_than_plain_trainings(digits, make_net, tmp_path):
    """Within-class spread at temperature 4, the thing that is minimised."""
    teacher, settings = make_net(digits), FitSettings(epochs=6, batch_size=32, learning_rate=0.01)
    images = torch.from_numpy(digits.validation.images).float() / 255

    def spread(weight):
        folder = tmp_path / str(weight)
        defence = ClusterCollapse(cluster_weight=weight)
        defence.build(teacher, digits, settings, folder)
        with torch.no_grad():
            outputs = (defence.load(teacher, folder).keyless(images) / 4).log_softmax(dim=1)
        labels, total = torch.from_numpy(digits.validation.labels), 0.0
        for c in range(10):
            own = outputs[labels == c]
            centre = own.exp().mean(dim=0).log()
            total += float((own.exp() * (own - centre)).sum())
        return total / len(labels)

    assert spread(3.0) < 0.5 * spread(0.0)


def test_centroids_follow_the_class_means():
    generator = torch.Generator().manual_seed(0)
    centroids, memory = Centroids(3, (1.0, 4.0), 0.8, torch.device("cpu")), 0.8
    slow = {}
    for _ in range(4):
        logits, labels = torch.randn(6, 3, generator=generator), torch.randint(0, 2, (6,), generator=generator)
        centroids.update(logits, labels)
        for i, temperature in enumerate((1.0, 4.0)):
            for c in set(labels.tolist()):
                mean = (logits[labels == c] / temperature).softmax(dim=1).mean(dim=0)
                slow[i, c] = mean if (i, c) not in slow else memory * slow[i, c] + (1 - memory) * mean
    for (i, c), row in slow.items():
        torch.testing.assert_close(centroids.table[i, c], row)
    torch.testing.assert_close(centroids.table[:, 2], torch.full((2, 3), 1 / 3))  # never seen
    torch.testing.assert_close(centroids.table.sum(dim=2), torch.ones(2, 3))


def test_adversarial_images_are_near_allowed_and_worse(digits, make_net):
    network = make_net(digits)
    train(network, digits, TrainSettings(epochs=8, batch_size=16, learning_rate=0.01))
    images = torch.from_numpy(digits.validation.images).float() / 255
    labels = torch.from_numpy(digits.validation.labels)
    moved = adversarial(network, images, labels, radius=0.2, step_size=0.05, steps=8)
    assert float((moved - images).abs().max()) <= 0.2 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert not moved.requires_grad
    with torch.no_grad():
        before = (network(images).argmax(dim=1) == labels).float().mean()
        after = (network(moved).argmax(dim=1) == labels).float().mean()
    assert before > 0.5
    assert after < before / 2


def test_adversarial_versions_stay_with_their_images(few, make_net):
    """Through shuffling and augmentation: with no room to move, both halves of a pair are the same picture."""
    network = make_net(few).eval()
    same = with_adversarial(few.train, network, radius=0.0, step_size=0.1, steps=2)
    assert same.images.shape == (48, 2, 8, 8)
    turned = replace(few, train=same, augment=Augment(crop_padding=1, flip=True, rotation=20))
    for batch in train_batches(turned, SETTINGS, torch.device("cpu")).epoch(1):
        image, version = batch.images.chunk(2, dim=1)
        assert torch.equal(image, version)
        assert not torch.equal(image[:, 0], torch.from_numpy(few.train.images)[batch.index][:, 0] / 255)
    moved = with_adversarial(few.train, network, radius=0.3, step_size=0.1, steps=4)
    assert np.array_equal(moved.images[:, :1], few.train.images)
    assert np.abs(moved.images[:, 1:].astype(int) - few.train.images).max() <= 77  # 0.3 of 255, rounded
    assert isinstance(moved, ImageSet)
    assert np.array_equal(moved.labels, few.train.labels)
