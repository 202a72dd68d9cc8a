"""Remote: a box that is asked over the network, as a student needs it. The server is in service.

    teacher = RemoteTeacher("http://127.0.0.1:8000/v2/models/box", cache=Path("answers.sqlite"))
    distill(teacher, student, data)                                  # a thief
    distill(RemoteTeacher(url, key=image_key), student, data)        # a partner: the images leave this machine keyed
    distill(RemoteTeacher(url, token=token), student, data)          # a partner whom the server knows by a token

Asked by the Open Inference Protocol v2 over HTTP. Every answer is kept on disk before it is used, so that no image is
paid for twice, whatever interrupts the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from sdb.config.address import Address
from sdb.errors import ConfigError, DataError, ModelError, RemoteError
from sdb.keys import Key
from sdb.models import compare_class_names
from sdb.remote.answer_cache import AnswerCache
from sdb.remote.protocol import Client

__all__ = ["PATIENCE", "RemoteError", "RemoteSuspect", "RemoteTeacher", "token_from"]

PATIENCE = 300.0  # seconds without one answer, after which a run ends

log = logging.getLogger("sdb")


class RemoteTeacher(nn.Module):
    """Images (N, C, H, W) to logits (N, classes), by asking a server; without gradients.

    Args:
        url: of the model, `http://HOST:PORT/v2/models/NAME`.
        key: an image key: what is sent are keyed images, the key stays here.
        token: by which the server knows who asks; sent as a bearer token, kept nowhere.
        cache: file for the answers; None keeps them in memory.
        patience: seconds to go on trying while no answer comes.

    Raises:
        ConfigError: the URL, the key or the token cannot be used.
        RemoteError: the server cannot be reached, has no such model, or gives no soft outputs.
        MissingExtraError: the extra `remote` is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Key | None = None,
        token: str | None = None,
        cache: Path | str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__()
        if key is not None and key.kind != "image":
            raise ConfigError(
                "key: a weight key opens a box that is here, not one behind a server: ask its owner for a token and "
                "name the variable that holds it, teacher_token_env"
            )
        try:
            address = Address.parse(url)
        except ConfigError as error:
            raise ConfigError(f"teacher_url {error}") from None
        self.key = key
        self._client = Client(address, token, patience)
        self.model = self._client.describe()
        # Answers are one asker's, of one model: another key, token or model asks anew.
        who = [address.url, self.model.fingerprint, key.id if key else "", _trace_of(token, address.url)]
        self._answers = AnswerCache(
            None if cache is None else Path(cache), hashlib.sha256("\0".join(who).encode()).digest()[:16]
        )
        self._from_cache = 0
        self._url = address.url
        self._said = False

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a connection and a file are not copied; there are no weights to keep apart

    @property
    def counts(self) -> dict[str, int]:
        """Images that the server has answered, over all runs of this cache, and answers taken from it in this one."""
        return {"asked": self._answers.count(), "from_cache": self._from_cache}

    def check_fits(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] = (),
        other_class_names: bool = False,
    ) -> None:
        """Refuse a remote model of another data set; see `sdb.models.checkpoint.check_fits`.

        Raises:
            ModelError: naming both.
        """
        given = (self.model.num_classes, self.model.image_shape)
        if given != (num_classes, image_shape):
            raise ModelError(
                f"teacher_url: the model there takes images {given[1]} and knows {given[0]} classes, the data set has "
                f"{image_shape} and {num_classes}"
            )
        compare_class_names(
            self.model.class_names, class_names, "teacher_url", other_class_names=other_class_names
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) on the images' device, by the cache or the server.

        Args:
            images: float (N, C, H, W), 8-bit pixels over 255.

        Raises:
            DataError: pixels that are no multiples of 1/255.
            RemoteError: the server gave up, or its patience ran out.
        """
        if not self._said:  # here, since only now a run's log is open
            log.info("asking %s for %s; %d answers are kept", self._url, self.model.kind, self._answers.count())
            self._said = True
        pixels = _bytes_of(images)
        names = [hashlib.sha256(pixel.tobytes()).digest() for pixel in pixels]
        known = self._answers.find(names, self.model.num_classes)
        missing = [i for name, i in {name: i for i, name in enumerate(names)}.items() if name not in known]
        missing.sort()
        self._from_cache += len(names) - len(missing)
        # From bytes on the CPU, so that what is sent does not depend on the device of the run.
        sent = torch.from_numpy(pixels[missing]).float().div_(255)
        if self.key is not None and missing:
            sent = self.key.embed(sent)
        begin = 0
        for rows in self._client.infer(self.model, sent.numpy()):
            fresh = {names[i]: row for i, row in zip(missing[begin:], rows, strict=False)}
            self._answers.keep(fresh)
            known |= fresh
            begin += len(rows)
        return torch.from_numpy(np.stack([known[name] for name in names])).to(images.device)


class RemoteSuspect:
    """Images to classes, by asking a server that may give labels alone: for `sdb.tracing.ties`.

    Args:
        url: of the model, `http://HOST:PORT/v2/models/NAME`.
        token: sent as a bearer token.
        patience: seconds to go on trying while no answer comes.

    Raises:
        ConfigError, RemoteError, MissingExtraError: as `RemoteTeacher` has them.
    """

    def __init__(self, url: str, *, token: str | None = None, patience: float = PATIENCE) -> None:
        self._client = Client(Address.parse(url), token, patience)
        self.model = self._client.describe(labels=True)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Classes int64 (N,) of images float32 (N, C, H, W).

        Raises:
            ModelError: it takes images of another shape.
            RemoteError: it does not answer.
        """
        if images.shape[1:] != self.model.image_shape:
            raise ModelError(f"the suspect takes images {self.model.image_shape}, the box {images.shape[1:]}")
        rows = np.concatenate(list(self._client.infer(self.model, images)))
        return rows if rows.ndim == 1 else rows.argmax(axis=1)


def token_from(variable: str | None) -> str | None:
    """The token that an environment variable holds.

    Raises:
        ConfigError: there is no such variable; it is not named, since what was given may be the token itself.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    if not token:
        raise ConfigError("teacher_token_env: no such environment variable is set; give the name, not the token")
    return token


def _bytes_of(images: Tensor) -> np.ndarray:
    """uint8 (N, C, H, W) of float images that were made from it."""
    given = images.detach().cpu().float()
    pixels = given.mul(255).round()
    if len(given) == 0 or not bool(((pixels / 255 - given).abs() < 1e-6).all() & (pixels >= 0).all()):
        raise DataError("a remote box is asked with images of 8-bit pixels over 255, in [0, 1]; these are not")
    if bool((pixels > 255).any()):
        raise DataError("a remote box is asked with pixels in [0, 1]; these go beyond")
    return pixels.to(torch.uint8).numpy()


def _trace_of(token: str | None, url: str) -> str:
    """Tells tokens apart in the cache without giving one away, even a weak one: scrypt, 16 MiB a guess."""
    return hashlib.scrypt(token.encode(), salt=url.encode(), n=2**14, r=8, p=1).hex() if token else ""
