"""What a guard adds to a request: the same server asked directly and through `sdb guard serve`, interleaved in one run.

    python benchmarks/guard.py
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

The server behind answers at once, with the same row for everything, or after 20 ms; so what is measured is the guard.
The client is tritonclient: one picture of 3x224x224 as bytes, and 32 texts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from few_images import RESULTS
from guard_servers import CLASSES, OUTPUT, row

from sdb.keys import Owner
from sdb.runtime import environment, write_atomic
from sdb.wrapping.guarded import guard

SERVERS = Path(__file__).with_name("guard_servers.py")
WARM, CLIENTS = 30, 16
# After so many requests memory is read.
COUNTS = (2_000, 25_000, 50_000, 100_000)


def questions(kind: Any) -> dict[str, list[Any]]:
    """Inputs by what they are, for a client of tritonclient: its module http or grpc."""
    picture = kind.InferInput("image", [1, 3, 224, 224], "FP32")
    picture.set_data_from_numpy(np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32))
    texts = kind.InferInput("text", [32, 1], "BYTES")
    texts.set_data_from_numpy(
        np.array([[f"how do I change the address of order {i}?"] for i in range(32)], object)
    )
    return {"one picture of 3x224x224": [picture], "32 texts": [texts]}


def latencies(kind: Any, addresses: dict[str, str], inputs: list[Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each request, the ways taking turns."""
    output = [kind.InferRequestedOutput(OUTPUT)]
    clients = {name: kind.InferenceServerClient(address) for name, address in addresses.items()}
    found: dict[str, list[float]] = {name: [] for name in addresses}
    for number in range(WARM + rounds):
        for name, client in clients.items():
            begin = time.perf_counter()
            client.infer("m", inputs, outputs=output).as_numpy(OUTPUT)
            if number >= WARM:
                found[name].append(1000 * (time.perf_counter() - begin))
    return found


def throughput(address: str, inputs: list[Any], seconds: float) -> float:
    """Requests per second of many clients against a server that takes 20 ms."""
    from tritonclient import http

    end = time.perf_counter() + seconds

    def client(_: int) -> int:
        done, connection = 0, http.InferenceServerClient(address)
        while time.perf_counter() < end:
            connection.infer("slow", inputs)
            done += 1
        return done

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS))) / seconds


def memory(address: str, process: int, inputs: list[Any]) -> dict[int, float]:
    """MiB of a process after so many requests."""
    from tritonclient import http

    found, done = {}, 0
    with ThreadPoolExecutor(CLIENTS) as pool:
        for count in COUNTS:
            each = (count - done) // CLIENTS

            def ask(_: int, each: int = each) -> None:
                client = http.InferenceServerClient(address)
                for _ in range(each):
                    client.infer("m", inputs)

            list(pool.map(ask, range(CLIENTS)))
            done = count
            status = Path(f"/proc/{process}/status").read_text()
            found[count] = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
    return found


def main() -> int:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "guard-speed.json")
    options = parser.parse_args()
    content: dict[str, Any] = {"kind": "guard speed", "command": "python benchmarks/guard.py"}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        shares = np.tile(row(), (400, 1))
        guard(None, (shares, np.full(400, 7)), owner=Owner.generate()).save(Path(folder) / "g")
        content |= speed(folder, running, options.rounds, options.seconds)
        content["memory_mib"] = memory(*guarded(folder, running, behind(running, "http"), "m"), few())
    content["environment"] = environment()
    content["markdown"] = markdown(content)
    print(content["markdown"])
    write_atomic(options.out, json.dumps(content, indent=1).encode() + b"\n")
    return 0


def few() -> list[Any]:
    """One short text."""
    from tritonclient import http

    text = http.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([["where is my order?"]], object))
    return [text]


def started(running: contextlib.ExitStack, command: list[str], **streams: Any) -> subprocess.Popen[str]:
    """A process that ends with the stack."""
    process = subprocess.Popen(command, text=True, **streams)
    running.callback(process.wait)
    running.callback(process.terminate)
    return process


def behind(running: contextlib.ExitStack, what: str) -> str:
    """HOST:PORT of a server of guard_servers.py."""
    process = started(running, [sys.executable, str(SERVERS), what], stdout=subprocess.PIPE)
    return f"127.0.0.1:{process.stdout.readline().strip()}"


def guarded(
    folder: str, running: contextlib.ExitStack, address: str, model: str, grpc: str | None = None
) -> tuple[str, int]:
    """HOST:PORT of a guard before a server, of its gRPC where that is given, and its process."""
    command = [sys.executable, "-m", "sdb", "guard", "serve", f"{folder}/g", "--port", "0"]
    command += ["--upstream", f"http://{address}", "--model", model, "--output", OUTPUT]
    command += [] if grpc is None else ["--upstream-grpc", grpc, "--grpc-port", "0"]
    process, said = started(running, command, stderr=subprocess.PIPE), ""
    wanted = r"guarding \S+ by gRPC at (\S+)" if grpc else r"guarding \S+ at http://(\S+)"
    while (found := re.search(wanted, said)) is None:
        said = process.stderr.readline()
        assert said, "the guard ended"
    return found[1], process.pid


def speed(folder: str, running: contextlib.ExitStack, rounds: int, seconds: float) -> dict[str, Any]:
    """Latencies and throughput."""
    from tritonclient import grpc, http

    direct = behind(running, "http")
    by_http = {"direct": direct, "plain proxy": behind(running, f"http://{direct}")}
    slow = by_http | {"guarded": guarded(folder, running, direct, "slow")[0]}
    by_http["guarded"] = guarded(folder, running, direct, "m")[0]
    by_grpc = {"direct": behind(running, "grpc")}
    by_grpc["guarded"] = guarded(folder, running, direct, "m", by_grpc["direct"])[0]
    rows = {
        f"{name}, {protocol}": latencies(kind, addresses, inputs, rounds)
        for protocol, kind, addresses in (("HTTP", http, by_http), ("gRPC", grpc, by_grpc))
        for name, inputs in questions(kind).items()
    }
    many: dict[str, list[float]] = {name: [] for name in slow}
    for _ in range(3):
        for name, address in slow.items():
            many[name].append(throughput(address, questions(http)["32 texts"], seconds))
    return {
        "rounds": rounds,
        "median_ms": {n: {way: float(np.median(each)) for way, each in row.items()} for n, row in rows.items()},
        "p95_ms": {
            n: {way: float(np.quantile(each, 0.95)) for way, each in row.items()} for n, row in rows.items()
        },
        "requests_per_second": {way: float(np.median(each)) for way, each in many.items()},
    }


def markdown(content: dict[str, Any]) -> str:
    """The part of docs/results.md."""
    lines = [
        "## what a guard adds to a request",
        "",
        f"    {content['command']}",
        "",
        "Client, guard and the server behind it share the cores of one machine. Milliseconds, median (95th percentile) "
        f"of {content['rounds']} requests each, taking turns; {CLASSES:,} classes. The plain proxy passes requests on "
        "unread, with the same libraries as the guard: it is the guard's floor.",
        "",
        "| request | direct | plain proxy | guarded | more than direct | more than the proxy |",
        "|---|---|---|---|---|---|",
    ]
    for name, medians in content["median_ms"].items():
        high = content["p95_ms"][name]
        ways = ("direct", "plain proxy", "guarded")
        cells = [f"{medians[way]:.2f} ({high[way]:.2f})" if way in medians else "–" for way in ways]
        over = f"{medians['guarded'] - medians['plain proxy']:.2f}" if "plain proxy" in medians else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {medians['guarded'] - medians['direct']:.2f} | {over} |")
    per = content["requests_per_second"]
    lines += [
        "",
        f"{CLIENTS} clients, 32 texts a request, a server that takes 20 ms: {per['direct']:.0f} requests per second "
        f"directly, {per['plain proxy']:.0f} through the plain proxy, {per['guarded']:.0f} guarded "
        f"({per['guarded'] / per['direct']:.2f}).",
        "",
        "Memory of the guard's process, MiB, after so many requests of one text by "
        + f"{CLIENTS} clients: "
        + ", ".join(f"{float(mib):.0f} ({int(count):,})" for count, mib in content["memory_mib"].items())
        + ".",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
