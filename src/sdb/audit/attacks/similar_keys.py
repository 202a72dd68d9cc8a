"""Keys that are nearly right: what an image key's neighbours open.

Each neighbour is a module from images to logits and the cosine similarity of its pattern to the true one, so that an
unlock curve can be drawn: knowledge against similarity. The holder of the true key makes them; nobody else could.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sdb.errors import ConfigError
from sdb.keys import Key


class Carry(nn.Module):
    """Puts a pattern into images: blend * image + (1 - blend) * pattern.

    Args:
        pattern: (C, H, W), values in [0, 1].
        blend: the image's share.
    """

    def __init__(self, pattern: Tensor, blend: float) -> None:
        super().__init__()
        self.blend = blend
        self.offset: Tensor
        self.register_buffer("offset", (1.0 - blend) * pattern, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) with the pattern in them."""
        return self.blend * images + self.offset


class Quantise(nn.Module):
    """Rounds pixels to 8 bits, as a file or an API that takes image files does."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), each value a multiple of 1/255."""
        return (images * 255).round() / 255


class Jpeg(nn.Module):
    """Sends images through JPEG; of one or three channels.

    Args:
        quality: JPEG quality, 1 to 95.
    """

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as they come back from the file."""
        pixels = (images.detach() * 255).round().clamp(0, 255).byte().cpu().numpy()
        decoded = np.stack([self._through(image) for image in pixels])
        return torch.from_numpy(decoded).to(images) / 255

    def _through(self, image: np.ndarray) -> np.ndarray:
        gray = len(image) == 1
        file = io.BytesIO()
        Image.fromarray(image[0] if gray else image.transpose(1, 2, 0)).save(file, "jpeg", quality=self.quality)
        back = np.array(Image.open(file))
        return back[None] if gray else back.transpose(2, 0, 1)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One way to ask with a key that is not quite the true one.

    Attributes:
        name: what was done to the key.
        cosine: similarity of its pattern to the true one, see `cosine_similarity`.
        module: images (N, C, H, W) to logits (N, classes).
    """

    name: str
    cosine: float
    module: nn.Module


@dataclass(frozen=True, slots=True)
class SimilarKeys:
    """An image key's neighbours.

    Attributes:
        cosines: of the pattern with noise; clipping to [0, 1] changes them a little.
        random_keys: unrelated patterns.
        sigmas: of the Gaussian that blurs the pattern, in pixels.
        jpeg_qualities: of keyed images sent through JPEG.
        blend_changes: what is added to the true share of the image.
        seed: of what is random here.
    """

    cosines: tuple[float, ...] = (0.99, 0.95, 0.9, 0.8, 0.6, 0.3)
    random_keys: int = 100
    sigmas: tuple[float, ...] = (1.0, 2.0)
    jpeg_qualities: tuple[int, ...] = (90, 75)
    blend_changes: tuple[float, ...] = (-0.1, -0.05, 0.05, 0.1)
    seed: int = 0

    def run(self, network: nn.Module, key: Key, image_shape: tuple[int, int, int]) -> list[Neighbour]:
        """All neighbours, the random ones last.

        Args:
            network: what answers images, a box or its classifier.
            key: the true image key.
            image_shape: (C, H, W).

        Raises:
            ConfigError: the key has no pattern.
        """
        if key.kind != "image":
            raise ConfigError("a weight key has no neighbours: it opens by decryption, wholly or not at all")
        true = torch.from_numpy(key.pattern(image_shape).copy()).float() / 255

        def asked(name: str, pattern: Tensor, *more: nn.Module, blend: float = key.blend) -> Neighbour:
            module = nn.Sequential(Carry(pattern, blend), *more, network).eval()
            return Neighbour(name, cosine_similarity(pattern, true), module)

        result = [asked("true key", true), asked("8-bit keyed images", true, Quantise())]
        result += [asked(f"JPEG {quality}", true, Jpeg(quality)) for quality in self.jpeg_qualities]
        for change in self.blend_changes:
            blend = min(max(key.blend + change, 0.0), 1.0)
            result.append(asked(f"blend {change:+g}", true, blend=blend))
        result += [asked(name, pattern) for name, pattern in self._patterns(true)]
        return result

    def _patterns(self, true: Tensor) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)

        def random() -> Tensor:
            return torch.rand(true.shape, generator=generator)

        for cosine in self.cosines:
            yield f"noise, cosine {cosine:g}", near(true, cosine, random())
        top = torch.arange(true.shape[1]).view(1, -1, 1) < true.shape[1] // 2
        yield "top half, rest random", torch.where(top, true, random())
        yield "top half, rest grey", torch.where(top, true, torch.full_like(true, 0.5))
        for sigma in self.sigmas:
            yield f"blurred, sigma {sigma:g}", blurred(true, sigma)
        for number in range(self.random_keys):
            yield f"random {number}", random()


def cosine_similarity(first: Tensor, second: Tensor) -> float:
    """Cosine of two patterns, each less its own mean; 0 where one of them is flat."""
    a, b = ((pattern - pattern.mean()).flatten().double() for pattern in (first, second))
    return float(F.cosine_similarity(a, b, dim=0))


def near(pattern: Tensor, cosine: float, noise: Tensor) -> Tensor:
    """A pattern of about that cosine similarity and the same contrast, clipped to [0, 1]."""
    mean = pattern.mean()
    centred, other = pattern - mean, noise - noise.mean()
    other = other - centred * (other * centred).sum() / centred.square().sum()
    other = other * centred.norm() / other.norm()
    return (mean + cosine * centred + (1 - cosine**2) ** 0.5 * other).clamp(0, 1)


def blurred(pattern: Tensor, sigma: float) -> Tensor:
    """The pattern (C, H, W) under a Gaussian of standard deviation `sigma` pixels; the border is repeated."""
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(F.pad(pattern.unsqueeze(1), (reach, reach, 0, 0), mode="replicate"), weights)
    columns = F.pad(rows, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(columns, weights.transpose(2, 3)).squeeze(1)
