"""Models: architectures by name, a network as a classifier of pixels, weights on disk. No training.

    network = build("resnet18", num_classes=10)                       # normalised images -> logits
    spec = ModelSpec("net", {"num_channels": 16}, 10, (1, 8, 8), mean=(0.3,), std=(0.4,))
    classifier = spec.build()                                         # pixels in [0, 1] -> logits
    classifier = from_module(my_network, 10, (3, 32, 32), mean, std)  # a module made elsewhere

Names are those of the reference code; the state dicts of its checkpoints load into `build(name, ...)`.
"""

from sdb.models.architectures import MODEL_DEFAULTS, MODELS, build
from sdb.models.class_names import compare_class_names
from sdb.models.classifier import MODULE, Classifier, ModelSpec, from_module
from sdb.models.probe import check
from sdb.models.weights import device_of

__all__ = [
    "MODELS",
    "MODEL_DEFAULTS",
    "MODULE",
    "Classifier",
    "ModelSpec",
    "build",
    "check",
    "compare_class_names",
    "device_of",
    "from_module",
]
