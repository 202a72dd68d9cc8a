"""An example of each command, for the end of its --help."""

EXAMPLES = {
    "train": "sdb train runs/teacher -s epochs=20",
    "wrap": "sdb wrap runs/box -s teacher=runs/teacher",
    "distill": "sdb distill runs/student --key runs/box/key.json",
    "evaluate": "sdb evaluate runs/box --key runs/box/key.json",
    "trace": "sdb trace suspect.safetensors --box runs/box --owner runs/box/owner.json",
    "check": "sdb check runs/box",
    "demo": "sdb demo --out runs/demo",
    "init": "sdb init runs/box --teacher runs/teacher",
    "params": "sdb params learning_rate",
    "export": "sdb export runs/box --to onnx --out box.onnx",
    "sign": "sdb sign runs/box --signing-key maker.pem",
    "verify": "sdb verify runs/box --public-key maker.pem.pub",
    "audit": "sdb audit runs/box --preset quick --out runs/audit",
    "audit-marks": "sdb audit-marks runs/box --owner runs/box/owner.json --out runs/marks",
    "grid": "sdb grid experiments/digits --workers 2",
    "reproduce": "sdb reproduce digits --out runs/reproduction",
    "serve": "sdb serve runs/box --port 8000",
}


def example(command: str) -> str:
    """The epilog of a command's help."""
    return f"Example: {EXAMPLES[command]}"
