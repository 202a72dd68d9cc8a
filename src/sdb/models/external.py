"""Networks from other packages, named `package.module:factory`.

Such a name imports and runs code, so it belongs in a user's own configuration, never in a file from a
stranger. Nothing is downloaded here; a factory that downloads does so on its own account.

    timm:create_model                      {"model_name": "resnet18", "num_classes": 10}
    torchvision.models:resnet18            {"num_classes": 10}
    transformers:ViTForImageClassification {"config": {"image_size": 32, "patch_size": 4}}
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sdb.errors import ModelError
from sdb.runtime import import_named


def from_factory(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Import the factory, call it with `arguments`, and return the network it makes.

    `num_classes` is added when the factory's signature has a parameter of that name and `arguments` does
    not. A factory with another way to say it (`**kwargs`, `n_classes`) needs it in `arguments`.

    A transformers model class (anything with a `config_class`) is called with a configuration instead: its
    only argument is `config`, the fields of the configuration, to which `num_labels=num_classes` is added.

    Raises:
        ModelError: the module or the attribute is missing, or the call fails or returns something else.
    """
    factory = _find(name)
    try:
        if hasattr(factory, "config_class"):
            network = _from_config(factory, num_classes, **arguments)
        else:
            network = factory(**_with_num_classes(factory, num_classes, arguments))
    # The factory is foreign code and may raise anything; the cause keeps its traceback.
    except Exception as error:
        given = ", ".join(arguments) or "none"
        raise ModelError(
            f"{name} failed with {type(error).__name__}: {error} (arguments given: {given}): "
            "correct the arguments to what the factory takes"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returned a {type(network).__name__}: name a factory that returns an nn.Module")
    return network


def _find(name: str) -> Callable[..., Any]:
    """Import what `name` points to."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ModelError(f"{name!r} is not of the form package.module:factory")
    try:
        module = import_named(module_name)
    except (ImportError, SyntaxError) as error:
        raise ModelError(
            f"{name}: cannot import {module_name} ({error}): install it, go to the folder it is in, or correct the name"
        ) from error
    try:
        factory = getattr(module, attribute)
    except AttributeError as error:
        nearest = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise ModelError(f"{name}: {module_name} has no {attribute}{hint}") from error
    if not callable(factory):
        raise ModelError(f"{name} is a {type(factory).__name__}: name something that can be called")
    return factory


def _from_config(factory: Any, num_classes: int, config: Mapping[str, Any] | None = None) -> Any:
    """Call a transformers model class with a configuration of its own kind."""
    return factory(factory.config_class(num_labels=num_classes, **(config or {})))


def _with_num_classes(
    factory: Callable[..., Any], num_classes: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments, and `num_classes` if the factory takes it by name."""
    takes_it = "num_classes" in inspect.signature(factory).parameters
    return {"num_classes": num_classes, **arguments} if takes_it else dict(arguments)
