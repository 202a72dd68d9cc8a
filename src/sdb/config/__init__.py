"""Parameters: what can be set, the ranges, the reference's names for them, and one strict reader.

    params = load(Path("experiments/digits/box"), "wrap", ["epochs=5"])

A parameter file is one flat JSON object, `DIR/params.json`. The file, the `--set` values and the defaults become one
dictionary that is validated once, so all faults come together, each with its field. The key names of the published
`params.json` files of SDB and Nasty Teacher are aliases (`ALIASES`), so those files run unchanged.
"""

from sdb.config.files import (
    canonical,
    guess_command,
    load,
    parse_overrides,
    read_json,
    validate,
)
from sdb.config.names import ALIASES, IGNORED, MODEL_ARGUMENTS, describe_faults
from sdb.config.params import COMMANDS, DistillParams, RunParams, TeacherParams, TrainParams, WrapParams, defaults
from sdb.config.settings import (
    LOSS_DEFAULTS,
    DistillSettings,
    FitSettings,
    Settings,
    TrainSettings,
    WrapSettings,
)

__all__ = [
    "ALIASES",
    "COMMANDS",
    "IGNORED",
    "LOSS_DEFAULTS",
    "MODEL_ARGUMENTS",
    "DistillParams",
    "DistillSettings",
    "FitSettings",
    "RunParams",
    "Settings",
    "TeacherParams",
    "TrainParams",
    "TrainSettings",
    "WrapParams",
    "WrapSettings",
    "canonical",
    "defaults",
    "describe_faults",
    "guess_command",
    "load",
    "parse_overrides",
    "read_json",
    "validate",
]
