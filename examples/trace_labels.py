"""Trace a thief of labels: a served box, two tokens, an ordinary script that asks for classes, and the name it leaves.

    python examples/trace_labels.py --data-root DIR --out runs/trace_labels      # about ten minutes on two cores

DIR is where Fashion-MNIST lies, see docs/data.md. What `steal` does, anybody can do with a token: it asks for classes
over HTTP and trains a network of its own; it uses nothing of sdb. docs/tracing.md says what the last line proves.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sdb

QUERIES = 8000  # of the 10,000 test images, which nobody trains on; the others measure


def steal(url: str, token: str, images: np.ndarray, epochs: int) -> nn.Module:
    """Ask for the classes of images float32 (N, 1, 28, 28), and learn them."""
    labels = []
    for part in np.array_split(images, len(images) // 100):
        tensor = {"name": "image", "datatype": "FP32", "shape": list(part.shape), "data": part.ravel().tolist()}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps({"inputs": [tensor]}).encode()
        request = urllib.request.Request(url + "/infer", body, headers)  # noqa: S310 - an address of ours
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            labels += json.load(answer)["outputs"][0]["data"]
    x, y = torch.from_numpy(images), torch.tensor(labels)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for epoch in range(epochs):
        for at in torch.randperm(len(x)).split(64):
            batch = x[at]
            mirrored = torch.rand(len(batch)) < 0.5  # a usual augmentation
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), y[at]).backward()
            optimizer.step()
        print(f"thief: epoch {epoch + 1} of {epochs}", file=sys.stderr)
    return net.eval()


def main() -> None:
    """The owner's commands, the theft, and the trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20, help="of the thief")
    options = parser.parse_args()
    out, root = options.out, str(options.data_root.absolute())
    common = {"model_name": "net", "num_channels": 16, "dataset": "fashion_mnist", "data_root": root}
    for name, more in (
        ("teacher", {"epochs": 6, "subset_percent": 0.4}),
        (
            "box",
            {"epochs": 3, "subset_percent": 0.4, "teacher": str(out.absolute() / "teacher"), "allowed_loss": 1},
        ),
    ):
        (out / name).mkdir(parents=True)
        (out / name / "params.json").write_text(json.dumps(common | more))

    def sdb_command(*arguments: str) -> str:
        print("$ sdb", *arguments, file=sys.stderr)
        return subprocess.run(["sdb", *arguments], cwd=out, check=True, stdout=subprocess.PIPE, text=True).stdout

    sdb_command("train", "teacher")
    sdb_command("wrap", "box")
    sdb_command("ledger", "new", "box", "--out", "ledger.db", "--ties", "ties.json", "--owner", "box/owner.json")
    tokens = {}
    for name in ("alice", "bob"):
        tokens[name] = json.loads(sdb_command("token", "new", name, "--tokens", "tokens.db", "--no-limits"))[
            "token"
        ]
    (out / "budgets.json").write_text('{"everyone": {"images_day": null, "rate": null, "burst": null}}')
    serve = ["serve", "box", "--answers", "labels", "--tokens", "tokens.db", "--budgets", "budgets.json"]
    serve += ["--ties", "ties.json", "--ledger", "ledger.db", "--alerts", "alerts.jsonl", "--port", "0"]
    print("$ sdb", *serve, file=sys.stderr)
    test = sdb.load_data("fashion_mnist", root=options.data_root).test
    images = np.asarray(test.images).astype(np.float32) / np.float32(255)
    with subprocess.Popen(["sdb", *serve], cwd=out, stderr=subprocess.PIPE, text=True) as server:
        said = server.stderr.readline() if server.stderr else ""
        url = re.findall(r"http://\S+?:\d+", said)[0] + "/v2/models/box"
        steal(url, tokens["alice"], images[:QUERIES], 0)  # an honest customer asks the same
        net = steal(url, tokens["bob"], images[:QUERIES], options.epochs)
        server.send_signal(signal.SIGTERM)
    right = (net(torch.from_numpy(images[QUERIES:])).argmax(1).numpy() == np.asarray(test.labels)[QUERIES:]).mean()
    print(f"the copy is {100 * right:.1f} % right", file=sys.stderr)
    torch.onnx.export(
        *(net, (torch.from_numpy(images[:1]),), out / "copy.onnx"),
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,
    )
    sdb_command("ledger", "commit", "ledger.db", "--out", "commitment.json")
    trace = ["trace", "copy.onnx", "--ledger", "ledger.db", "--commitment", "commitment.json"]
    print(sdb_command(*trace, "--owner", "box/owner.json", "--tokens", "tokens.db"), end="")


if __name__ == "__main__":
    main()
