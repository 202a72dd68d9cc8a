"""What serving costs beside the bare model, what batching gains, and what a flood does.

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--rounds 5] [--seconds 1.0] [--out FILE]

Prints one JSON object. Real servers (`sdb serve`, one for each row) on loopback, a digits net and a preresnet20, by
ONNX Runtime and by torch. Everything that is compared alternates in rounds; numbers are medians over rounds with their
range. Times include the client, which is plain sockets in this process, so the client takes its share of the cores.

latency: one client, one image a request, beside `session.run` in this process; the goal is 1.3 times that plus 1 ms.
marked: the same with a token, without ties and with every twentieth image a tie that is kept; the goal is 5 % more.
credentials: the same without a token, with a wrong one, and with a partner's.
throughput: 16 clients, one image a request, beside the same server with batches of one; the goal is 2 times. Also the
server's processor time for one request, which other work on the machine changes less.
flood: requests of 32 images arrive at 10 times the rate that was measured; latency of those that are answered, and the
server's memory, in a second flood after one that filled what is kept for reuse.
"""

import argparse
import itertools
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.ties import Ties, log_probabilities, margins_of
from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import load
from sdb.export import export
from sdb.keys import Key, Owner
from sdb.keys.sealing import public_of
from sdb.models import ModelSpec
from sdb.runtime import environment
from sdb.service.watch import Limits, TokenFile
from sdb.wrapping.wrap import wrap

CLIENTS, FLOOD_FACTOR, FLOOD_IMAGES, FLOOD_SECONDS = 16, 10, 32, 3.0
BLOCK = 50  # calls between two switches of what is timed


@dataclass(frozen=True)
class Server:
    """A running `sdb serve`."""

    port: int
    process: subprocess.Popen

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(box: Path, *options: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "sdb", "serve", str(box), "--port", "0", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if line.startswith("serving"):
                    break
            else:
                raise SystemExit("the server did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Server(int(line.split(" (")[0].rsplit(":", 1)[1]), process)
        finally:
            process.terminate()


def request(images: np.ndarray, token: str = "") -> bytes:
    """An inference request with binary tensors, as bytes on the wire."""
    data = images.tobytes()
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = "POST /v2/models/box/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += f"inference-header-content-length: {len(text)}\r\ncontent-length: {len(text) + len(data)}\r\n"
    head += f"authorization: Bearer {token}\r\n" if token else ""
    return (head + "\r\n").encode() + text + data


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""

    def send(self, data: bytes) -> None:
        self.received = b""
        self.socket.sendall(data)

    def take(self) -> int:
        """Read what is there; the HTTP status once the answer is whole, else 0."""
        part = self.socket.recv(2**18)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return 0
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]) if len(body) >= length else 0

    def ask(self, data: bytes) -> None:
        self.send(data)
        while not (status := self.take()):
            pass
        if status != 200:
            raise SystemExit(self.received)


def median_of(call: Callable[[], Any], calls: int = BLOCK) -> float:
    """Milliseconds."""
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def spread(values: list[float]) -> dict[str, float]:
    return {
        name: round(value, 3)
        for name, value in (("median", statistics.median(values)), ("min", min(values)), ("max", max(values)))
    }


def alternating(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Run every call in every round, after one round that does not count."""
    results: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if turn:
                results[name].append(value)
    return {name: spread(values) for name, values in results.items()}


def rate(server: Server, data: bytes, clients: int, seconds: float, processor: list[float] | None = None) -> float:
    """Requests answered a second, each client asking again as soon as it has its answer.

    Milliseconds of the server's processor time for one request are appended to `processor`.
    """
    selector = selectors.DefaultSelector()
    with ExitStack() as stack:
        for _ in range(clients):
            client = Client(server.port)
            stack.enter_context(client.socket)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(data)
        answered, begin, used = 0, time.perf_counter(), server.processor()
        while (now := time.perf_counter()) < begin + seconds:
            for key, _ in selector.select(timeout=1):
                status = key.data.take()
                if status == 200:
                    answered += 1
                    key.data.send(data)
                elif status:
                    raise SystemExit(key.data.received)
        if processor is not None:
            processor.append(1e3 * (server.processor() - used) / answered)
        return answered / (now - begin)


def flood(server: Server, data: bytes, per_second: float, seconds: float) -> dict[str, Any]:
    """Send at a fixed rate, whatever the server does, each request on a connection of its own."""
    selector = selectors.DefaultSelector()
    begin, sent, statuses = time.perf_counter(), 0, {}
    latencies: dict[int, list[float]] = {}
    memory = [server.memory()]
    open_clients = 0
    while (now := time.perf_counter()) < begin + seconds or open_clients:
        if now > begin + seconds + 30:
            raise SystemExit("the server answers no more")
        if now < begin + seconds and sent < (now - begin) * per_second:
            client = Client(server.port)
            client.begin = time.perf_counter()
            client.send(data)
            selector.register(client.socket, selectors.EVENT_READ, client)
            sent += 1
            open_clients += 1
            if sent % 20 == 0:
                memory.append(server.memory())
        for key, _ in selector.select(timeout=0 if now < begin + seconds else 0.1):
            status = key.data.take()
            if status:
                statuses[status] = statuses.get(status, 0) + 1
                latencies.setdefault(status, []).append(time.perf_counter() - key.data.begin)
                selector.unregister(key.data.socket)
                key.data.socket.close()
                open_clients -= 1
    memory.append(server.memory())

    def of(values: list[float]) -> dict[str, float]:
        ordered = sorted(values)
        return {"median_s": round(ordered[len(ordered) // 2], 3), "max_s": round(ordered[-1], 3)}

    half = len(memory) // 2
    return {
        "sent_per_second": round(sent / seconds, 1),
        "statuses": statuses,
        "latency": {status: of(values) for status, values in latencies.items()},
        "memory_MB": {
            "before": round(memory[0] / 1e6, 1),
            "peak_first_half": round(max(memory[:half]) / 1e6, 1),
            "peak_second_half": round(max(memory[half:]) / 1e6, 1),
        },
    }


def boxes(folder: Path) -> Iterator[tuple[str, Path, Path, Path, tuple[int, int, int]]]:
    """Two weight-key boxes with their ONNX files; what they were trained to does not matter here."""
    data = load("digits", subset_percent=0.1)
    for name, arguments, shape in (("net", {"num_channels": 24}, (1, 8, 8)), ("preresnet20", {}, (3, 32, 32))):
        spec = ModelSpec(name, arguments, 10, shape, (0.5,) * shape[0], (0.25,) * shape[0])
        key = Key.generate()
        if shape == data.image_shape:
            box = wrap(spec.build(), data, WrapSettings(epochs=1, batch_size=64, learning_rate=0.001), key=key)
        else:
            box = unprotected(spec)
        box.save(folder / name)
        key.save(folder / f"{name}.key")
        export(box, folder / f"{name}.onnx", "onnx")
        yield name, folder / name, folder / f"{name}.onnx", folder / f"{name}.key", shape


def unprotected(spec: ModelSpec) -> Box:
    """A box without any protection, of random weights."""
    from sdb.box.box import BoxInfo

    return Box(spec.build(), BoxInfo("none", {}, tuple(map(str, range(spec.num_classes)))))


def compare(name: str, box: Path, onnx: Path, shape: tuple[int, int, int], arguments: Any) -> dict[str, Any]:
    """One model, both engines."""
    rng = np.random.default_rng(0)
    one = rng.random((1, *shape), dtype=np.float32)
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx, threads)
    bare = Box.load(box)
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        engines = {"onnxruntime": ["--onnx", onnx], "torch": []}
        on = {engine: stack.enter_context(serving(box, *options)) for engine, options in engines.items()}
        single = {
            engine: stack.enter_context(serving(box, *options, "--max-batch", 1))
            for engine, options in engines.items()
        }
        data = request(one)
        clients = {engine: Client(server.port) for engine, server in on.items()}

        def by_torch() -> None:
            with torch.inference_mode():
                bare(torch.from_numpy(one))

        latency = alternating(
            {
                "bare onnxruntime": lambda: median_of(lambda: session.run(None, {"image": one})),
                "served onnxruntime": lambda: median_of(lambda: clients["onnxruntime"].ask(data)),
                "bare torch": lambda: median_of(by_torch),
                "served torch": lambda: median_of(lambda: clients["torch"].ask(data)),
            },
            2 * arguments.rounds,
        )
        goal = 1.3 * latency["bare onnxruntime"]["median"] + 1.0
        result["latency_ms"] = latency | {
            "goal": round(goal, 3),
            "reached": latency["served onnxruntime"]["median"] <= goal,
        }
        kinds = {
            f"{engine}, {what}": servers[engine]
            for engine in engines
            for what, servers in (("batches", on), ("one at a time", single))
        }
        used: dict[str, list[float]] = {kind: [] for kind in kinds}
        throughput = alternating(
            {
                kind: (lambda s=server, u=used[kind]: rate(s, data, CLIENTS, arguments.seconds, u))
                for kind, server in kinds.items()
            },
            arguments.rounds,
        )
        result["requests_per_second"] = throughput
        result["server_processor_ms_per_request"] = {kind: spread(values[1:]) for kind, values in used.items()}
        for measure, better in (("requests_per_second", 1), ("server_processor_ms_per_request", -1)):
            for engine in engines:
                batches, single_one = (
                    result[measure][f"{engine}, {what}"]["median"] for what in ("batches", "one at a time")
                )
                result.setdefault("gain", {})[f"{engine}, {measure}"] = round((batches / single_one) ** better, 2)
        if name != "net":
            many = request(rng.random((FLOOD_IMAGES, *shape), dtype=np.float32))
            # The largest batch once, so that what ONNX Runtime keeps for it is not taken for growth.
            clients["onnxruntime"].ask(request(rng.random((256, *shape), dtype=np.float32)))
            capacity = rate(on["onnxruntime"], many, 4, 2 * arguments.seconds)
            flood(on["onnxruntime"], many, FLOOD_FACTOR * capacity, FLOOD_SECONDS)
            flooded = flood(on["onnxruntime"], many, FLOOD_FACTOR * capacity, FLOOD_SECONDS)
            result["flood"] = {"capacity_requests_per_second": round(capacity, 1), **flooded}
    return result


def credentials(box: Path, key: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds without a token, with a wrong one, and with a partner's."""
    tokens = TokenFile(folder / "tokens.db", create=True)
    token = tokens.add("partner", partner=Key.load(key).id)
    options = ("--tokens", folder / "tokens.db", "--partner-keys", key)
    one = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    with serving(box, *options) as server:
        client = Client(server.port)
        asked = {"none": request(one), "wrong": request(one, token[:-1] + "x"), "partner": request(one, token)}
        return alternating(
            # Few enough for the default limit of anonymous requests.
            {name: (lambda data=data: median_of(lambda: client.ask(data), 20)) for name, data in asked.items()},
            min(rounds, 5),
        )


def marked(box: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of one image with a token: without ties, and where every twentieth image is a tie that is kept."""
    owner, info = Owner.generate(), Box.load(box).info
    images = np.random.default_rng(0).random((4000, 1, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        _, margins = margins_of(log_probabilities(Box.load(box).classifier(torch.from_numpy(images)).numpy()))
    ties = Ties.of(owner.secret, info.id, float(np.quantile(margins, 0.05)))
    terms = Terms(ties.box_id, ties.id, ties.tau, public_of(owner.queries_key).hex())
    Ledger.create(folder / "ledger.db", terms).close()
    ties.save(folder / "ties.json")
    token = TokenFile(folder / "accounts.db", create=True).add("bob", limits=Limits(burst=None))
    no_limits = {"everyone": {"images_day": None, "rate": None, "burst": None}}
    (folder / "budgets.json").write_text(json.dumps(no_limits))
    marks = ("--ties", folder / "ties.json", "--ledger", folder / "ledger.db")
    plain = ("--tokens", folder / "accounts.db", "--budgets", folder / "budgets.json")
    with serving(box, *plain) as without, serving(box, *plain, *marks) as with_ties:
        clients = {"without ties": Client(without.port), "with ties": Client(with_ties.port)}
        asked = itertools.cycle([request(image[None], token) for image in images])
        return alternating(
            {
                name: (lambda client=client: median_of(lambda: client.ask(next(asked)), 10 * BLOCK))
                for name, client in clients.items()
            },
            2 * rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    result: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    result["environment"]["onnxruntime"] = onnxruntime.__version__
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, box, onnx, key, shape in boxes(folder):
            result[name] = compare(name, box, onnx, shape, arguments)
            if shape == (1, 8, 8):
                result["credentials_ms"] = credentials(box, key, folder, arguments.rounds)
                result["marked_ms"] = marked(box, folder, arguments.rounds)
    result["seconds"] = round(time.perf_counter() - begin, 1)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
