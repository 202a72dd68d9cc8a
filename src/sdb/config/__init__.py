"""Parameters: what can be set, the ranges, the reference's names, one strict reader. What they name is found in runs.

    params = load(Path("experiments/digits/box"), "wrap", ["epochs=5"])

A parameter file is one flat object, `DIR/params.json` or `DIR/params.toml`. The file, the `--set` values and the
defaults become one dictionary that is validated once, so all faults come together, each with its field. The key names
of the published `params.json` files of SDB and Nasty Teacher are aliases (`ALIASES`), so those files run unchanged, and
as the reference's scripts would run them (`sdb.config.reference`).
"""

from sdb.config.files import (
    CHECKPOINTS,
    LEFT_OPEN,
    PARAMS,
    RESOLVED,
    canonical,
    differing,
    filled_as,
    guess,
    guess_command,
    inferred,
    load,
    params_file,
    parse_overrides,
    read_json,
    read_params,
    validate,
)
from sdb.config.names import ALIASES, IGNORED, MODEL_ARGUMENTS, describe_faults
from sdb.config.params import COMMANDS, DistillParams, RunParams, TeacherParams, TrainParams, WrapParams, defaults
from sdb.config.pictures import DEFAULT_PICTURES, Pictures, read_pictures
from sdb.config.run_folder import BOX, MANIFEST, box_of, is_box
from sdb.config.settings import (
    LOSS_DEFAULTS,
    DistillSettings,
    FitSettings,
    Settings,
    TrainSettings,
    WrapSettings,
    optimizer_for,
)

__all__ = [
    "ALIASES",
    "BOX",
    "CHECKPOINTS",
    "COMMANDS",
    "DEFAULT_PICTURES",
    "IGNORED",
    "LEFT_OPEN",
    "LOSS_DEFAULTS",
    "MANIFEST",
    "MODEL_ARGUMENTS",
    "PARAMS",
    "RESOLVED",
    "DistillParams",
    "DistillSettings",
    "FitSettings",
    "Pictures",
    "RunParams",
    "Settings",
    "TeacherParams",
    "TrainParams",
    "TrainSettings",
    "WrapParams",
    "WrapSettings",
    "box_of",
    "canonical",
    "defaults",
    "describe_faults",
    "differing",
    "filled_as",
    "guess",
    "guess_command",
    "inferred",
    "is_box",
    "load",
    "optimizer_for",
    "params_file",
    "parse_overrides",
    "read_json",
    "read_params",
    "read_pictures",
    "validate",
]
