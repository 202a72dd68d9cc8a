"""How an encoded picture becomes pixels: chosen with the data, recorded in the model, obeyed by the server."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sdb.errors import ConfigError

Fit = Literal["crop", "stretch"]
Filter = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """The choices by which a PNG, JPEG or other encoded picture becomes the pixels of an image.

    Attributes:
        background: colour that transparent pixels are laid on, #rrggbb.
        fit: where the size is another one. crop: the picture is brought to cover it, and the middle is kept. stretch:
            the whole picture is brought to it, which may change the aspect ratio.
        turn: whether the picture is turned and mirrored as its EXIF data say.
        filter: of the resizing; it is widened where the picture becomes smaller.

    Raises:
        ConfigError: a choice that does not exist.
    """

    background: str = "#ffffff"
    fit: Fit = "crop"
    turn: bool = True
    filter: Filter = "bicubic"

    def __post_init__(self) -> None:
        if not isinstance(self.background, str) or not re.fullmatch("#[0-9a-f]{6}", self.background):
            raise ConfigError(f"background {self.background!r}: expected a colour as #rrggbb, in lower case")
        for name, choices in (("fit", get_args(Fit)), ("filter", get_args(Filter))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} {getattr(self, name)!r}: expected {' or '.join(choices)}")
        if not isinstance(self.turn, bool):
            raise ConfigError(f"turn {self.turn!r}: expected true or false")


DEFAULT_PICTURES = Pictures()


def read_pictures(value: Any) -> Pictures:
    """The choices in a JSON object; those that it leaves out are the defaults.

    Raises:
        ConfigError: not an object, or an unknown name or choice; all that are unknown are named.
    """
    if isinstance(value, Pictures):
        return value
    names = [field.name for field in fields(Pictures)]
    if not isinstance(value, dict):
        raise ConfigError(f"a {type(value).__name__}, expected an object with {', '.join(names)}")
    if unknown := sorted(map(str, value.keys() - set(names))):
        raise ConfigError(f"unknown {', '.join(unknown)}: expected {', '.join(names)}")
    return Pictures(**value)
