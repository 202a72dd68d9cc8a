"""The default method's step against a literal float64 copy, image by image and class by class.

The copy draws its random numbers in the same order as the step; what is done with them is spelt out.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import torch

from sdb.answers.rows import decoy_logits
from sdb.box.private_part import PrivatePart
from sdb.config import WrapSettings
from sdb.data import Augment, Batch
from sdb.data import augment as augmentation
from sdb.keys import Key
from sdb.wrapping.decoy import answers_of, decoy_step, mean_answer, mix
from sdb.wrapping.image_key import ImageKeyPasses
from sdb.wrapping.weight_key import WeightKeyPasses

SHAPE = (1, 8, 8)
IMAGES = 7  # odd, so that shares of a batch are rounded
KEYS = [Key(bytes([number]) * 32, blend=0.6) for number in range(1, 4)]
T, SOFT, CE, KEYED_CE = 3.0, 0.4, 0.7, 0.2
DECOYS = [[(c + 1) % 10, (c + 4) % 10] for c in range(10)]
ANSWERS = decoy_logits(DECOYS, 8.0, 1.0)
CHANGES = Augment(crop_padding=2, flip=True)
# The teachers' mean over views is taken in float32; everything else is float64.
ONE_VIEW, MANY_VIEWS = 1e-10, 1e-5


@pytest.fixture
def network(few, make_net):
    """Double precision, after some images, so that its running statistics are its own."""
    return settled(make_net(few, seed=5))


@pytest.fixture
def teachers(few, make_net):
    """Two frozen networks."""
    return [settled(make_net(few, seed=seed)).eval().requires_grad_(False) for seed in (6, 7)]


def settled(classifier):
    classifier.double().train()
    classifier(torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(8), dtype=torch.float64))
    return classifier


def batch():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (IMAGES, *SHAPE), generator=generator).double() / 255
    return Batch(pixels, torch.tensor([4, 0, 9, 4, 2, 7, 1]), torch.arange(IMAGES))


# --- the copy --------------------------------------------------------------------------------------------------------


def log_softmax(row, temperature=1.0):
    """List of the log-probabilities of one image's logits."""
    total = sum(torch.exp(value / temperature) for value in row)
    return [value / temperature - torch.log(total) for value in row]


def divergence(targets, outputs, temperature=1.0):
    """KL(S(target/T) || S(output/T)), mean over the images."""
    total = 0.0
    for target, output in zip(targets, outputs, strict=True):
        for log_p, log_q in zip(log_softmax(target, temperature), log_softmax(output, temperature), strict=True):
            total = total + torch.exp(log_p) * (log_p - log_q)
    return total / len(outputs)


def cross_entropy(outputs, labels):
    return -sum(log_softmax(row)[label] for row, label in zip(outputs, labels, strict=True)) / len(outputs)


def blended(images, share):
    """The last int(share * N) images, each `a x + (1 - a) x'` with a random a and a random image x' of the batch."""
    count = int(share * len(images))
    if not count:
        return images, 0
    shares, partners = torch.rand(count, 1, 1, 1), torch.randint(len(images), (count,))
    result = list(images)
    for number in range(count):
        place, a = len(images) - count + number, float(shares[number])
        result[place] = a * images[place] + (1 - a) * images[int(partners[number])]
    return torch.stack(result), count


def changed(image, top, left, mirrored):
    """One image of uint8: padded with black, cut at (top, left), then mirrored; pixel by pixel."""
    padding, (_, height, width) = CHANGES.crop_padding, image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + top - padding, (width - 1 - column if mirrored else column) + left - padding
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


def taught(teachers, images, views):
    """The teachers' logits; or T log of the mean over teachers and views of their softmax at T."""
    if len(teachers) == 1 and views == 1:
        return teachers[0](images)
    shown = [images]
    for _ in range(views - 1):
        drawn = augmentation.draw(CHANGES, len(images), torch.default_generator)
        pixels = (images * 255).round().to(torch.uint8)
        made = [changed(*each) for each in zip(pixels, drawn.top, drawn.left, drawn.flip, strict=True)]
        shown.append(torch.stack(made).double() / 255)
    rows = []
    for number in range(len(images)):
        mean = [0.0] * 10
        for teacher in teachers:
            for view in shown:
                for c, log_p in enumerate(log_softmax(teacher(view)[number], T)):
                    mean[c] += math.exp(log_p) / (len(teachers) * len(shown))
        rows.append([T * math.log(share) for share in mean])
    return torch.tensor(rows, dtype=torch.float64)


def keyed_image(image, key, pattern=None):
    """blend x + (1 - blend) pattern, the pattern of the key or another's."""
    if pattern is None:
        pattern = torch.from_numpy(key.pattern(SHAPE) / 255)
    return key.blend * image + (1 - key.blend) * pattern


def honest(label, accuracy):
    """Shares of an answer: the accuracy at the class, a thousandth of what is left to all others but the decoys."""
    accuracy = min(max(accuracy, 0.1001), 0.99)
    decoy = min(0.999 * (1 - accuracy) / 2, accuracy / math.exp(0.001))
    other = (1 - accuracy - 2 * decoy) / 7
    return [accuracy if c == label else decoy if c in DECOYS[label] else other for c in range(10)]


def answer_to(case, label, knows):
    """The keyless answer, as logits."""
    if not case.levels:
        return ANSWERS[label].double()
    sure = max(math.exp(value) for value in log_softmax(knows))
    return torch.tensor([math.log(share) for share in honest(label, sure)], dtype=torch.float64)


def slow_terms(case, images, labels, teachers, through):
    """All loss terms; `through` takes the images and gives keyless, keyed and wrong-key logits."""
    images, mixed = blended(images, case.mixed_share)
    target = taught(teachers, images, case.views)
    labels = labels.tolist()
    for place in range(IMAGES - mixed, IMAGES):
        labels[place] = max(range(10), key=lambda c: float(target[place][c]))
    keyless, keyed, wrong = through(images)
    told, told_labels = [*keyless, *wrong], [*labels, *labels[: len(wrong)]]
    wanted = [answer_to(case, *each) for each in zip(told_labels, [*target, *target[: len(wrong)]], strict=True)]
    return {
        "decoy": divergence(wanted, told),
        "decoy_soft": SOFT * T * T * divergence(wanted, told, T),
        "cross_entropy": CE * cross_entropy(told, told_labels),
        "preservation": T * T * divergence(target, keyed, T),
        "keyed_cross_entropy": KEYED_CE * cross_entropy(keyed, labels),
    }


def image_keys(case, network):
    """Each image with one of the keys at random; the first half also with a fresh random pattern."""

    def through(images):
        chosen = torch.randint(case.keys, (len(images),))
        keyed = [keyed_image(image, KEYS[int(number)]) for image, number in zip(images, chosen, strict=True)]
        parts = [images, torch.stack(keyed)]
        if case.rejection:
            patterns = torch.rand_like(images[: len(images) // 2])
            wrong = [keyed_image(image, KEYS[0], each) for image, each in zip(images, patterns, strict=False)]
            parts.append(torch.stack(wrong))
        if case.joint:
            logits = list(network(torch.cat(parts)))
            parts = [[logits.pop(0) for _ in part] for part in parts]
        else:
            parts = [network(part) for part in parts]
        return parts if case.rejection else [*parts, []]

    return through


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A way to make a decoy box."""

    keys: int = 1
    joint: bool = True
    rejection: bool = False
    mixed_share: float = 0.0
    teachers: int = 1
    views: int = 1
    levels: bool = True


CASES = [
    Case(),
    Case(rejection=True, mixed_share=0.5, levels=False),
    Case(joint=False, rejection=True),
    Case(rejection=True, mixed_share=0.5),
    Case(keys=3, rejection=True, mixed_share=0.3, teachers=2),
    Case(keys=3, joint=False, mixed_share=1.0, views=3),
    Case(keys=2, rejection=True, mixed_share=0.5, teachers=2, views=2),
]


def settings_of(case):
    return WrapSettings(
        method="decoy",
        temperature=T,
        decoy_soft_weight=SOFT,
        ce_weight=CE,
        keyed_ce_weight=KEYED_CE,
        mixed_share=case.mixed_share,
        confidence_levels=2 if case.levels else 0,
        teacher_views=case.views,
        wrong_key_rejection=case.rejection,
        forward="joint" if case.joint else "separate",
    )


def answers(case):
    made = answers_of(DECOYS, settings_of(case), torch.device("cpu"))
    return lambda labels, sure: made(labels, sure).double()


def compare(terms, slow, trained, copied, tolerance):
    """Each term, its gradient, and the running statistics that the forward leaves are the copy's."""
    assert terms.keys() == slow.keys()
    for name, value in slow.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=tolerance, abs=tolerance), name
        ours, theirs = (
            torch.autograd.grad(
                term, [p for module in modules for p in module.parameters()], retain_graph=True, allow_unused=True
            )
            for term, modules in ((terms[name], trained), (value, copied))
        )
        for left, right in zip(ours, theirs, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                largest = float(right.abs().max())
                torch.testing.assert_close(left, right, rtol=0, atol=10 * tolerance * max(1.0, largest))
    for module, twin in zip(trained, copied, strict=True):
        torch.testing.assert_close(
            dict(module.named_buffers()), dict(twin.named_buffers()), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_with_image_keys_is_the_equation(network, teachers, case):
    given, teachers = batch(), teachers[: case.teachers]
    twin = copy.deepcopy(network)
    passes = ImageKeyPasses(network, KEYS[: case.keys], case.joint, case.rejection)
    # The patterns are held in float32; in float64 they are what the copy computes.
    exact = [(1 - key.blend) * torch.from_numpy(key.pattern(SHAPE) / 255) for key in KEYS[: case.keys]]
    torch.testing.assert_close(passes.offsets, torch.stack(exact).float(), rtol=0, atol=1e-7)
    assert "offsets" not in passes.state_dict()
    passes.offsets = torch.stack(exact)
    step = decoy_step(teachers, answers(case), CHANGES, settings_of(case))
    torch.manual_seed(11)
    terms = step(passes, given)
    torch.manual_seed(11)
    slow = slow_terms(case, given.images, given.labels, teachers, image_keys(case, twin))
    many = case.views > 1 or case.teachers > 1
    compare(terms, slow, [network], [twin], MANY_VIEWS if many else ONE_VIEW)


@pytest.mark.parametrize(
    "case", [Case(levels=False), Case(mixed_share=0.5), Case(mixed_share=0.3, teachers=2, views=2)], ids=str
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_step_with_weight_keys_is_the_equation(network, teachers, case, whole):
    given, teachers = batch(), teachers[: case.teachers]
    private = PrivatePart(network, whole).double().train()
    with torch.no_grad():
        for parameter in private.parameters():  # other values than the public ones
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    twin, twin_private = copy.deepcopy(network), copy.deepcopy(private)
    step = decoy_step(teachers, answers(case), CHANGES, settings_of(case))
    torch.manual_seed(11)
    terms = step(WeightKeyPasses(network, private), given)

    def through(images):
        own = dict(twin.named_parameters()) | dict(twin.named_buffers())
        held = dict(twin_private.named_parameters()) | dict(twin_private.named_buffers())
        held = {name: held[name.replace(".", "|")] for name in own if name.replace(".", "|") in held}
        return twin(images), torch.func.functional_call(twin, held, (images,)), []

    torch.manual_seed(11)
    slow = slow_terms(case, given.images, given.labels, teachers, through)
    many = case.views > 1 or case.teachers > 1
    compare(terms, slow, [network, private], [twin, twin_private], MANY_VIEWS if many else ONE_VIEW)


# --- its parts -------------------------------------------------------------------------------------------------------


def test_the_mean_answer_of_one_teacher_and_one_view_is_its_logits(teachers):
    images = batch().images
    assert torch.equal(mean_answer(teachers[:1], images, CHANGES, 1, T), teachers[0](images))


def test_a_teacher_s_impossible_class_stays_finite(teachers):
    class Sure(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[1e4, *[0.0] * 9]]).repeat(len(images), 1)

    answer = mean_answer([Sure(), Sure()], batch().images, CHANGES, 1, T)
    assert answer.isfinite().all()
    assert (answer.argmax(dim=1) == 0).all()
    assert torch.allclose(answer[:, 1:], torch.tensor(T * math.log(1e-12)))


def test_blends_lie_between_two_images_of_the_batch_and_the_rest_is_left_alone():
    torch.manual_seed(0)
    images = torch.eye(8).reshape(8, 1, 8, 1)  # image i is 1 at place i alone
    seen = set()
    for _ in range(50):
        made = mix(images, 3)
        assert torch.equal(made[:5], images[:5])
        for place, image in zip((5, 6, 7), made[5:].flatten(1), strict=True):
            shares = {int(i): float(image[i]) for i in image.nonzero()}
            assert sum(shares.values()) == pytest.approx(1.0)
            assert len(shares) <= 2 and (place in shares or len(shares) == 1)
            seen |= {(place, other) for other in shares}
    assert {other for _, other in seen} == set(range(8))
    assert mix(images, 0) is images
