"""Names of classes: do a model's classes and the data's go by the same names, in the same order?

A label is only a number. Where two class folders trade places, or the data are of something else, every accuracy is
still a number, and wrong. So names are kept with weights and compared wherever a model meets data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import normalize

from sdb.errors import ModelError

# What transformers calls the classes of a model whose classes have no names.
WITHOUT_NAMES = re.compile(r"LABEL_\d+")
SHOWN = 4


def compare_class_names(
    own: Sequence[str], given: Sequence[str], source: object, *, other_class_names: bool = False
) -> None:
    """Refuse a model whose classes are not the data's; a model without names is not refused.

    Names are compared in Unicode's composed form (NFC), since macOS stores file names decomposed, and without regard to
    capitals where these tell no two classes apart.

    Args:
        own: the model's names, in label order; empty where they are not known.
        given: the data's names, in label order; as many, or empty.
        source: what to call the model in an error.
        other_class_names: let other names pass. A name that both have must have the same number even then: another
            order is never what somebody wants.

    Raises:
        ModelError: naming the first class that differs.
    """
    if not own or not given:
        return
    if len(own) != len(given):
        raise ModelError(f"{source}: made for {len(own)} classes, the data has {len(given)}: name the right data")
    mine, theirs = _comparable(own, given)
    places = {name: number for number, name in enumerate(theirs) if theirs.count(name) == 1}
    for number, name in enumerate(mine):
        if places.get(name, number) != number and mine.count(name) == 1:
            raise ModelError(
                f"{source}: class {number} is {own[number]!r} there and {_name(given, number)} in the data, which have "
                f"{own[number]!r} as class {places[name]}: put the classes of the data into the model's order"
            )
    if mine != theirs and not other_class_names:
        raise ModelError(
            f"{source}: its classes are {_some(own)}, those of the data {_some(given)}: name the right data; if these "
            "are the same classes in the same order under other names, say so: other_class_names (--other-class-names)"
        )


def _comparable(own: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    exact = [normalize("NFC", name) for name in own], [normalize("NFC", name) for name in given]
    folded = [name.casefold() for name in exact[0]], [name.casefold() for name in exact[1]]
    keep = all(len(set(f)) == len(set(e)) for f, e in zip(folded, exact, strict=True))
    return folded if keep else exact


def _name(names: Sequence[str], number: int) -> str:
    return repr(names[number]) if number < len(names) else "none"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (" ..." if len(names) > SHOWN else "")
