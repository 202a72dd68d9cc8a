"""The private part of a weight-key box: the parameters that a key puts in place.

Found by itself on any architecture: every normalisation layer (scale, shift, running statistics) and the head, which is
the last linear or convolution layer to run; where there is no normalisation, a low-rank addition to every weight
matrix. It is a few per cent of a network, travels encrypted, and without it the network gives keyless answers only.
Or it is everything (`whole`): twice the size, and the public network has no weight in common with the private one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdb.errors import CheckpointError, ModelError
from sdb.models import Classifier
from sdb.models.weights import not_finite

WITH_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ADAPTER_RANK = 4
UP, DOWN = "@up", "@down"


class PrivatePart(nn.Module):
    """A second set of some of a classifier's parameters and buffers, trained beside the first.

    Args:
        classifier: the network; the private part starts as a copy of its values, so that it changes nothing at first.
        whole: everything but the normalisation of pixels is private.
    """

    def __init__(self, classifier: Classifier, whole: bool = False) -> None:
        super().__init__()
        own_parameters, own_buffers = dict(classifier.named_parameters()), dict(classifier.named_buffers())
        everything = [name for name in _names(classifier) if name not in ("mean", "std")]
        self.replaced = everything if whole else replaceable(classifier)
        # Module attribute names may not hold dots, parameter names do.
        for name in self.replaced:
            if name in own_parameters:
                self.register_parameter(_key(name), nn.Parameter(own_parameters[name].detach().clone()))
            else:
                self.register_buffer(_key(name), own_buffers[name].detach().clone())
        self.adapted = adaptable(classifier) if not (whole or has_norms(classifier)) else []
        self.adapted = [name for name in self.adapted if name in own_parameters and name not in self.replaced]
        for name in self.adapted:
            weight = own_parameters[name].detach()
            rows, columns = weight.shape[0], weight[0].numel()
            rank = min(ADAPTER_RANK, rows, columns)
            # One factor zero: the addition begins at nothing.
            self.register_parameter(_key(name + UP), nn.Parameter(weight.new_zeros(rows, rank)))
            self.register_parameter(
                _key(name + DOWN), nn.Parameter(torch.randn(rank, columns).to(weight) / columns**0.5)
            )

    def tensors(self, classifier: nn.Module) -> dict[str, Tensor]:
        """What stands in for the classifier's own tensors, by their names there."""
        held = {_name(key): tensor for key, tensor in (*self.named_parameters(), *self.named_buffers())}
        return assemble(held, dict(classifier.named_parameters()))

    def forward(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Keyed logits (N, classes); running statistics that are private are updated in training mode."""
        return functional_call(classifier, self.tensors(classifier), (images,))

    def export(self) -> dict[str, Tensor]:
        """The private tensors, by name, as they travel."""
        return {
            _name(key): tensor.detach().cpu().contiguous().clone() for key, tensor in self.state_dict().items()
        }


def put_in_place(classifier: Classifier, held: Mapping[str, Tensor]) -> Classifier:
    """A copy of the classifier with private tensors in place.

    Raises:
        CheckpointError: the tensors are of another network, or not finite.
    """
    unlocked = copy.deepcopy(classifier)
    target = unlocked.state_dict()
    try:
        tensors = assemble(held, target)
        for name, tensor in tensors.items():
            if target[name].shape != tensor.shape:
                raise CheckpointError(f"private part: {name} is of another shape; restore the box from a copy")
            target[name].copy_(tensor)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"private part: of another network ({type(error).__name__})") from None
    if (name := not_finite(unlocked)) is not None:
        raise CheckpointError(f"private part: {name} is not finite (NaN or an infinity): wrap again")
    return unlocked.eval()


def assemble(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors from what is held: replacements as they are, low-rank additions added to the network's own."""
    result = {}
    for name, tensor in held.items():
        if name.endswith(UP):
            base = name.removesuffix(UP)
            addition = tensor @ held[base + DOWN].to(tensor.device)
            result[base] = own[base] + addition.reshape(own[base].shape).to(own[base].device)
        elif not name.endswith(DOWN):
            result[name] = tensor
    return result


def replaceable(classifier: Classifier) -> list[str]:
    """Names of the parameters and buffers that get a private twin: those of norms and of the head."""
    head = head_of(classifier)
    names = []
    for prefix, module in classifier.named_modules():
        if is_norm(module) or module is head:
            # With what a parametrisation (weight norm, spectral norm) holds below a layer.
            own = (*module.named_parameters(), *module.named_buffers())
            names += [f"{prefix}.{name}" for name, _ in own]
    kept = set(_names(classifier))
    return [name for name in names if name in kept]


def _names(classifier: Classifier) -> list[str]:
    """What a file of weights holds, a tensor with two names (tied weights, a module used twice) by its first."""
    kept = classifier.state_dict()
    own = (*classifier.named_parameters(), *classifier.named_buffers())
    return [name for name, _ in own if name in kept]


def has_norms(classifier: Classifier) -> bool:
    """Whether there is a normalisation layer with parameters."""
    return any(is_norm(module) and any(True for _ in module.parameters()) for module in classifier.modules())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: torch's, or one named so with parameters of its own."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return True
    is_leaf = not any(True for _ in module.children())
    return is_leaf and "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())


def adaptable(classifier: Classifier) -> list[str]:
    """Names of the weight matrices and kernels of all layers."""
    return [f"{prefix}.weight" for prefix, m in classifier.named_modules() if isinstance(m, WITH_WEIGHTS)]


@torch.no_grad()
def head_of(classifier: Classifier) -> nn.Module:
    """The layer that makes the logits: the last weighted layer to run with one output a class.

    Raises:
        ModelError: there is none.
    """
    seen: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in classifier.modules()
        if isinstance(module, WITH_WEIGHTS) and module.weight.shape[0] == classifier.num_classes
    ]
    modes = {module: module.training for module in classifier.modules()}
    try:
        classifier.eval()
        classifier(torch.zeros(1, *classifier.image_shape, device=classifier.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ModelError("no linear or convolution layer with one output per class was found: use image keys")
    return seen[-1]


def _key(name: str) -> str:
    return name.replace(".", "|")


def _name(key: str) -> str:
    return key.replace("|", ".")
