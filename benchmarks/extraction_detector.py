"""How often the extraction detector cries wolf, and how soon it sees an extraction, on digits.

    OMP_NUM_THREADS=1 python benchmarks/extraction_detector.py [--seeds 3] [--first-seed 0] [--out FILE.json]

For each seed: a teacher and two image-key boxes (blend 0.9 and 0.5) on one half of the training images; a profile from
the other half; then simulated principals. Ordinary ones ask about test images in the ways of `ORDINARY`; extractions
are those of `ATTACKS`, in which the searches are real attack code against the box. All of one principal's queries go
through the detector as a server would hand them over. An ordinary principal with any alert is a false alarm. The
detector's constants were chosen on seeds 100 and 101 (--first-seed 100); what is reported is on others.
"""

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from sdb.audit.attacks.key_search import EvolutionSearch, HillClimb
from sdb.audit.attacks.similar_keys import Carry
from sdb.box.box import Box
from sdb.config import TrainSettings, WrapSettings
from sdb.data import ImageSet, Splits, load
from sdb.keys import Key, Owner
from sdb.models import Classifier, ModelSpec
from sdb.runtime import derive_seed, environment
from sdb.service.watch.detector import Detector, fit_profile
from sdb.service.watch.profile import Profile
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

FIT: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 3e-3,
    "device": "cpu",
    "schedule": "cosine",
}
BLENDS = (0.9, 0.5)
PRINCIPALS = 6  # of each ordinary kind, a seed
SEARCH_QUERIES = 6_000  # what half of an image key costs (docs/results.md)
Batches = Iterator[np.ndarray]


@dataclass(frozen=True, slots=True)
class World:
    """One seed: boxes by blend, a profile of each, an attacker's network, and the images people ask about."""

    data: Splits
    boxes: dict[float, Box]
    profiles: dict[float, Profile]
    own_net: Classifier
    test: np.ndarray
    labels: np.ndarray
    everything: np.ndarray


def pixels(images: ImageSet) -> np.ndarray:
    return np.asarray(images.images).astype(np.float32) / 255


@torch.no_grad()
def answers(module: nn.Module, images: np.ndarray) -> np.ndarray:
    return module(torch.from_numpy(images)).numpy()


def make_world(seed: int) -> World:
    data = load("digits", validation_fraction=0.5, seed=seed)

    def trained(label: str) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, label))
            spec = ModelSpec("net", {"num_channels": 16}, 10, data.image_shape, data.mean, data.std)
            network = spec.build()
        train(network, data, TrainSettings(**FIT, epochs=20, seed=derive_seed(seed, label, "fit") % 2**31))
        return network

    teacher, own_net = trained("teacher"), trained("own")
    boxes, profiles, owner = {}, {}, Owner.generate()
    held = pixels(data.validation)
    for blend in BLENDS:
        key: Key = owner.partner("partner", "image", blend)
        settings = WrapSettings(**FIT, epochs=20, ce_weight=1.0, margin=1.0, method="decoy", seed=seed)
        boxes[blend] = wrap(teacher, data, settings, key=key, owner=owner).eval()
        logits = answers(boxes[blend], held)
        profiles[blend] = fit_profile(held, logits, coverage_images=len(data.train), seed=seed)
    test, everything = pixels(data.test), np.concatenate([pixels(data.train), pixels(data.test)])
    return World(data, boxes, profiles, own_net, test, np.asarray(data.test.labels), everything)


# Ordinary principals: a world and a generator to batches of images, 200 to 550 in all.


def batches(images: np.ndarray, size: int = 8) -> Batches:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def how_many(generator: np.random.Generator) -> int:
    return int(generator.integers(200, 550))


def random_images(world: World, generator: np.random.Generator) -> np.ndarray:
    return world.test[generator.integers(0, len(world.test), how_many(generator))]


def skewed(world: World, generator: np.random.Generator, concentration: float) -> np.ndarray:
    weights = generator.dirichlet(np.full(10, concentration))[world.labels]
    return world.test[generator.choice(len(world.test), how_many(generator), p=weights / weights.sum())]


def one_class(world: World, generator: np.random.Generator) -> np.ndarray:
    rows = np.flatnonzero(world.labels == generator.integers(0, 10))
    return world.test[generator.choice(rows, how_many(generator))]


def repeated(world: World, generator: np.random.Generator) -> np.ndarray:
    few = generator.choice(len(world.test), 30, replace=False)
    return world.test[generator.choice(few, how_many(generator))]


def jpeg(images: np.ndarray, generator: np.random.Generator, low: int = 60) -> np.ndarray:
    out = np.empty_like(images)
    for row, image in enumerate(images):
        buffer = io.BytesIO()
        picture = Image.fromarray((image[0] * 255).round().astype(np.uint8))
        picture.save(buffer, "JPEG", quality=int(generator.integers(low, 96)))
        out[row, 0] = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    return out


def edited(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brightness and contrast by up to 15 %, noise of standard deviation 0.02."""
    shape = (len(images), 1, 1, 1)
    contrast, brightness = generator.uniform(0.85, 1.15, shape), generator.uniform(-0.15, 0.15, shape)
    noise = generator.normal(0, 0.02, images.shape)
    return ((images - 0.5) * contrast + 0.5 + brightness + noise).clip(0, 1).astype(np.float32)


def turned(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turned by up to 10 degrees and shifted by up to a third of a pixel."""
    tensor = torch.from_numpy(images)
    angle = torch.from_numpy(np.deg2rad(generator.uniform(-10, 10, len(images)))).float()
    shift = torch.from_numpy(generator.uniform(-0.33, 0.33, (2, len(images)))).float() * 2 / images.shape[-1]
    rows = [
        torch.stack([angle.cos(), -angle.sin(), shift[0]], 1),
        torch.stack([angle.sin(), angle.cos(), shift[1]], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(tensor.shape), align_corners=False)
    return nn.functional.grid_sample(tensor, grid, align_corners=False).clamp(0, 1).numpy()


def camera(world: World, generator: np.random.Generator) -> np.ndarray:
    """Eight frames of each scene, with the sensor's noise."""
    frames = np.repeat(world.test[generator.integers(0, len(world.test), how_many(generator) // 8)], 8, axis=0)
    return (frames + generator.normal(0, 0.02, frames.shape)).clip(0, 1).astype(np.float32)


def exposures(world: World, generator: np.random.Generator) -> np.ndarray:
    """Each image at four brightnesses, the same four for all."""
    images = np.repeat(world.test[generator.integers(0, len(world.test), how_many(generator) // 4)], 4, axis=0)
    steps = np.tile(np.array([-0.1, 0.0, 0.1, 0.2], np.float32), len(images) // 4)
    return (images + steps[:, None, None, None]).clip(0, 1)


ORDINARY: dict[str, Callable[[World, np.random.Generator], Batches]] = {
    "random images": lambda w, g: batches(random_images(w, g), 1),
    "skewed class mix": lambda w, g: batches(skewed(w, g, 0.3)),
    "strongly skewed class mix": lambda w, g: batches(skewed(w, g, 0.1)),
    "one class": lambda w, g: batches(one_class(w, g)),
    "bursts of 200": lambda w, g: batches(random_images(w, g), 200),
    "30 images again and again": lambda w, g: batches(repeated(w, g)),
    "JPEG, quality 60 to 95": lambda w, g: batches(jpeg(random_images(w, g), g)),
    "brightness, contrast, noise": lambda w, g: batches(edited(random_images(w, g), g)),
    "turned and shifted": lambda w, g: batches(turned(random_images(w, g), g)),
    "camera, 8 frames a scene": lambda w, g: batches(camera(w, g)),
    "30 images, JPEG each time": lambda w, g: batches(jpeg(repeated(w, g), g)),
    "four brightnesses of each": lambda w, g: batches(exposures(w, g)),
}

# Ordinary, and yet like an extraction: what an owner has to know of.
ALIKE: dict[str, Callable[[World, np.random.Generator], Batches]] = {
    "as many images as the box was trained on": lambda w, g: batches(
        w.everything[g.permutation(len(w.everything))]
    ),
    "camera, 1,200 frames of one scene": lambda w, g: batches(
        (w.test[[int(g.integers(0, len(w.test)))]] + g.normal(0, 0.02, (1_200, 1, 8, 8)))
        .clip(0, 1)
        .astype(np.float32)
    ),
    "inverted images": lambda w, g: batches(1 - random_images(w, g)),
}

# Extractions.


class Recorder(nn.Module):
    """The box as an attack sees it; what is asked is kept, as 8-bit pictures if need be."""

    def __init__(self, box: nn.Module, change: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        super().__init__()
        self.box, self.change, self.asked = box, change, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shown = images.numpy() if self.change is None else self.change(images.numpy())
        self.asked.append(shown)
        return self.box(torch.from_numpy(shown))


def eight_bit(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.float32) / 255


def noisy(images: np.ndarray) -> np.ndarray:
    """Sensor-like noise of standard deviation 0.02: an attacker who knows how near-duplicates are looked at."""
    noise = np.random.default_rng(int.from_bytes(images.tobytes()[-256:], "big")).normal(0, 0.02, images.shape)
    return (images + noise).clip(0, 1).astype(np.float32)


def own_images(world: World, generator: np.random.Generator) -> Batches:
    return batches(world.everything[generator.permutation(len(world.everything))], 64)


def augmented_images(world: World, generator: np.random.Generator) -> Batches:
    for _ in range(2):
        order = generator.permutation(len(world.everything))
        yield from batches(turned(world.everything[order], generator), 64)


def letters(world: World, generator: np.random.Generator) -> Batches:
    """Drawn letters: images of the same make with other content."""
    drawn = []
    for _ in range(2_000):
        font = ImageFont.load_default(size=int(generator.integers(24, 38)))
        picture = Image.new("L", (40, 40))
        text = chr(ord("A") + int(generator.integers(0, 26)))
        place = generator.integers(2, 14, 2)
        ImageDraw.Draw(picture).text((int(place[0]), int(place[1]) - 6), text, fill=255, font=font)
        drawn.append(np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.float32) / 255)
    yield from batches(np.stack(drawn)[:, None], 64)


def textures_like(world: World, generator: np.random.Generator, slope: float) -> Batches:
    """Random pictures with a spectrum falling like 1/f^slope, in the owner's range of brightness."""
    frequency = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(8))
    frequency[0, 0] = 1.0
    noise = np.fft.ifft2(np.fft.fft2(generator.normal(size=(2_000, 8, 8))) / frequency**slope).real
    noise = (noise - noise.mean(axis=(1, 2), keepdims=True)) / noise.std(axis=(1, 2), keepdims=True)
    scaled = world.test.mean() + world.test.std() * noise
    yield from batches(scaled.clip(0, 1).astype(np.float32)[:, None], 64)


def uniform_noise(world: World, generator: np.random.Generator) -> Batches:
    yield from batches(generator.random((2_000, 1, 8, 8), dtype=np.float32), 64)


def jacobian(world: World, generator: np.random.Generator) -> Batches:
    """Papernot's augmentation: 100 images, doubled by moving each 0.1 along the sign of the attacker's gradient."""
    images = world.test[generator.choice(len(world.test), 100, replace=False)]
    yield from batches(images, 64)
    while len(images) < 1_600:
        tensor = torch.from_numpy(images).requires_grad_()
        world.own_net(tensor).amax(dim=1).sum().backward()
        moved = (images + 0.1 * np.sign(tensor.grad.numpy())).clip(0, 1)
        yield from batches(moved, 64)
        images = np.concatenate([images, moved])


def search(
    world: World, generator: np.random.Generator, blend: float, kind: str, diluted: int = 0, **options: Any
) -> Batches:
    """A search of the image key; diluted: so many ordinary images after each one of the search."""
    change = options.pop("change", None)
    victim = Recorder(world.boxes[blend], change)
    seed = int(generator.integers(0, 2**31))
    attack = (HillClimb if kind == "hill" else EvolutionSearch)(queries=SEARCH_QUERIES, seed=seed, **options)
    attack.run(victim, world.data.test, blend, world.own_net)
    for asked in victim.asked:
        yield asked
        if diluted:
            yield world.test[generator.integers(0, len(world.test), diluted * len(asked))]


def fixed_pattern(world: World, generator: np.random.Generator) -> Batches:
    """Distilling with one wrong key: all images carry the same random pattern, blend 0.9."""
    pattern = torch.from_numpy(generator.random((1, 8, 8), dtype=np.float32))
    images = world.everything[generator.permutation(len(world.everything))]
    yield from batches(Carry(pattern, 0.9)(torch.from_numpy(images)).numpy(), 64)


ATTACKS: dict[str, tuple[float, Callable[[World, np.random.Generator], Batches]]] = {
    "distillation, images like the owner's": (0.9, own_images),
    "distillation, turned and shifted twice": (0.9, augmented_images),
    "knockoff, letters": (0.9, letters),
    "knockoff, 1/f textures": (0.9, lambda w, g: textures_like(w, g, 1.0)),
    "data-free, smooth noise": (0.9, lambda w, g: textures_like(w, g, 2.0)),
    "data-free, uniform noise": (0.9, uniform_noise),
    "Jacobian augmentation": (0.9, jacobian),
    "one wrong key, blend 0.9": (0.9, fixed_pattern),
}
for _blend in BLENDS:
    for _name, _options in {
        "hill climb": {"kind": "hill"},
        "hill climb, 8-bit images": {"kind": "hill", "change": eight_bit},
        "hill climb, noise added": {"kind": "hill", "change": noisy},
        "hill climb, 1 image": {"kind": "hill", "batch_size": 1},
        "hill climb, 256 images": {"kind": "hill", "batch_size": 256},
        "hill climb, 1 in 4 queries": {"kind": "hill", "diluted": 3},
        "hill climb, 1 in 11 queries": {"kind": "hill", "diluted": 10},
        "hill climb, 1 in 4 queries, noise added": {"kind": "hill", "diluted": 3, "change": noisy},
        "NES": {"kind": "nes"},
    }.items():
        ATTACKS[f"{_name}, blend {_blend:g}"] = (
            _blend,
            lambda w, g, b=_blend, o=_options: search(w, g, b, **o),
        )


def run(world: World, blend: float, asked: Batches) -> dict[str, Any]:
    """One principal: queries, when each kind of alert came first, and the largest value of every statistic."""
    detector, first, largest, queries = Detector(world.profiles[blend]), {}, {}, 0
    for images in asked:
        for finding in detector.look("someone", images, answers(world.boxes[blend], images)):
            first.setdefault(finding.kind, queries + len(images))
        queries += len(images)
        for name, value in detector.statistics("someone").items() if queries % 256 < len(images) else ():
            largest[name] = max(largest.get(name, 0.0), value)
    return {"queries": queries, "first": first, "largest": {k: round(v, 3) for k, v in largest.items()}}


def run_seed(seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    world = make_world(seed)
    thresholds = {k: round(v, 3) for k, v in Detector(world.profiles[0.9]).thresholds.items()}
    say(f"seed {seed}: boxes and profiles made; thresholds {thresholds}")
    rows = []
    for name, ordinary in ORDINARY.items():
        for number in range(PRINCIPALS):
            generator = np.random.default_rng(derive_seed(seed, name, number))
            rows.append(
                {"kind": "ordinary", "name": name, "seed": seed, **run(world, 0.9, ordinary(world, generator))}
            )
    for name, alike in ALIKE.items():
        generator = np.random.default_rng(derive_seed(seed, name))
        rows.append({"kind": "alike", "name": name, "seed": seed, **run(world, 0.9, alike(world, generator))})
    say(f"seed {seed}: ordinary principals")
    for name, (blend, attack) in ATTACKS.items():
        generator = np.random.default_rng(derive_seed(seed, name))
        rows.append(
            {"kind": "extraction", "name": name, "seed": seed, **run(world, blend, attack(world, generator))}
        )
    say(f"seed {seed}: extractions")
    return rows


def upper_bound(found: int, total: int, level: float = 0.95) -> float:
    """Largest rate that would still give so few in 1 - level of all trials (Clopper and Pearson, one-sided)."""
    low, high = found / total, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        chance = sum(math.comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(found + 1))
        low, high = (rate, high) if chance > 1 - level else (low, rate)
    return high


def when(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each name: queries until an alert."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        first = " / ".join(f"{min(row['first'].values()):,}" if row["first"] else "never" for row in of)
        cells = []
        for kind in dict.fromkeys(kind for row in of for kind in row["first"]):
            seen = [row["first"][kind] for row in of if kind in row["first"]]
            cells.append(f"{kind} {max(seen):,}" + (f" ({len(seen)} of {len(of)})" if len(seen) < len(of) else ""))
        lines.append(f"| {name} | {max(row['queries'] for row in of):,} | {first} | {', '.join(cells)} |")
    return lines


def markdown(rows: list[dict[str, Any]]) -> str:
    ordinary = [row for row in rows if row["kind"] == "ordinary"]
    wrong = [row for row in ordinary if row["first"]]
    bound = upper_bound(len(wrong), len(ordinary))
    lines = [
        f"**Ordinary use**: {len(wrong)} of {len(ordinary)} principals raised an alert "
        f"({100 * len(wrong) / len(ordinary):.1f} %; at most {100 * bound:.1f} % with 95 % confidence).\n",
        "| ordinary principals, 200 to 550 images each | false alarms | by kind |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in ordinary):
        of = [row for row in ordinary if row["name"] == name]
        kinds = [kind for row in of for kind in row["first"]]
        by_kind = ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
        lines.append(f"| {name} | {sum(bool(row['first']) for row in of)} of {len(of)} | {by_kind} |")
    for kind, title in (
        ("alike", "Ordinary use that is told all the same"),
        ("extraction", "Extraction"),
    ):
        lines += [
            f"\n**{title}**: queries until the first alert in each seed; until each kind spoke, in the slowest seed.\n",
            "| principal | queries in all | first alert after | kinds |",
            "|---|---|---|---|",
        ]
        lines += when([row for row in rows if row["kind"] == kind])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="100 is what the detector's constants were chosen on"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        rows += run_seed(
            seed, lambda text: print(f"<!-- {text}, {time.perf_counter() - begin:.0f} s -->", flush=True)
        )
    command = f"python benchmarks/extraction_detector.py --seeds {options.seeds}"
    command += f" --first-seed {options.first_seed}" if options.first_seed else ""
    page = f"## Who looks like a thief: digits, {options.seeds} seeds\n\n    {command}\n\n{markdown(rows)}"
    print(page)
    if options.out:
        seconds = round(time.perf_counter() - begin, 1)
        record = {"markdown": page, "rows": rows, "seconds": seconds, "environment": environment()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
