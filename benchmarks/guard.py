"""What a guard adds to a request: the same server asked directly and through `sdb guard serve`, interleaved in one run.

    python benchmarks/guard.py
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

The server behind answers at once, with the same row for everything, or after 20 ms; so what is measured is the guard.
The client is tritonclient: one picture of 3x224x224 as bytes, and 32 texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from few_images import RESULTS

from sdb.keys import Owner
from sdb.runtime import environment, write_atomic
from sdb.wrapping.guarded import guard

CLASSES, OUTPUT = 1000, "scores"
WARM, CLIENTS = 30, 16


async def received(scope: dict[str, Any], receive: Any) -> bytes:
    """The body of a request; empty for what is none."""
    parts, more = [], scope["type"] == "http"
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def behind(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application that answers as a model of the protocol would."""
    body = await received(scope, receive)
    if scope["type"] != "http":
        return
    headers, content = [], b"{}"
    if scope["path"].endswith("/infer"):
        size = int(dict(scope["headers"])[b"inference-header-content-length"])
        request = json.loads(body[:size])
        count = request["inputs"][0]["shape"][0]
        if "slow" in scope["path"]:
            await asyncio.sleep(0.02)
        row = np.full(CLASSES, 0.2 / (CLASSES - 1), dtype="<f4")
        row[7] = 0.8
        tensor = {"name": OUTPUT, "datatype": "FP32", "shape": [count, CLASSES]}
        tensor["parameters"] = {"binary_data_size": count * row.nbytes}
        text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()
        headers = [(b"inference-header-content-length", str(len(text)).encode())]
        content = text + row.tobytes() * count
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def plain_proxy(address: str) -> Any:
    """The floor: an ASGI application of the guard's parts, uvicorn and aiohttp, that passes requests on unread."""
    import aiohttp

    sessions = []

    async def passed(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await received(scope, receive)
        if not sessions:
            sessions.append(aiohttp.ClientSession(auto_decompress=False))
        sent = {
            name.decode(): value.decode()
            for name, value in scope["headers"]
            if name.startswith((b"inf", b"content-t"))
        }
        async with sessions[0].request(scope["method"], address + scope["path"], data=body, headers=sent) as got:
            content = await got.read()
        size = got.headers.get("inference-header-content-length", "").encode()
        headers = [(b"inference-header-content-length", size)] if size else []
        await send({"type": "http.response.start", "status": got.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return passed


def serve(app: Any) -> None:
    """Serve an application until the process ends; the port is the first line."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", access_log=False))

    def told() -> None:
        while not server.started:
            time.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    threading.Thread(target=told, daemon=True).start()
    server.run()


def questions() -> dict[str, list[Any]]:
    """Inputs of tritonclient by what they are."""
    from tritonclient import http

    picture = http.InferInput("image", [1, 3, 224, 224], "FP32")
    picture.set_data_from_numpy(np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32))
    texts = http.InferInput("text", [32, 1], "BYTES")
    texts.set_data_from_numpy(
        np.array([[f"how do I change the address of order {i}?"] for i in range(32)], object)
    )
    return {"one picture of 3x224x224": [picture], "32 texts": [texts]}


def latencies(addresses: dict[str, str], model: str, inputs: list[Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each request, the ways taking turns."""
    from tritonclient import http

    output = [http.InferRequestedOutput(OUTPUT, binary_data=True)]
    clients = {name: http.InferenceServerClient(address) for name, address in addresses.items()}
    found: dict[str, list[float]] = {name: [] for name in addresses}
    for number in range(WARM + rounds):
        for name, client in clients.items():
            begin = time.perf_counter()
            client.infer(model, inputs, outputs=output).as_numpy(OUTPUT)
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


def main() -> int:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "guard-speed.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(behind if options.serve == "behind" else plain_proxy(options.serve))
        return 0
    shares = np.full((400, CLASSES), 0.2 / (CLASSES - 1), dtype=np.float32)
    shares[np.arange(400), np.arange(400)] = 0.8
    with tempfile.TemporaryDirectory() as folder:
        guard(None, (shares, np.arange(400)), owner=Owner.generate()).save(Path(folder) / "g")
        running = []
        try:
            addresses, app = {}, "behind"
            for name in ("direct", "plain proxy"):
                command = [sys.executable, __file__, "--serve", app]
                running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                addresses[name] = f"127.0.0.1:{running[-1].stdout.readline().strip()}"
                app = f"http://{addresses[name]}"
            models = {"m": "guarded", "slow": "guarded, slow"}
            for model, name in models.items():
                command = [sys.executable, "-m", "sdb", "guard", "serve", f"{folder}/g", "--port", "0"]
                command += ["--upstream", f"http://{addresses['direct']}", "--model", model, "--output", OUTPUT]
                running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
                said = ""
                while "guarding" not in said:
                    said = running[-1].stderr.readline()
                addresses[name] = re.search(r"http://(\S+)", said)[1]
            slow = addresses.pop("guarded, slow")
            rows = {}
            for name, inputs in questions().items():
                rows[name] = latencies(addresses, "m", inputs, options.rounds)
            asked = addresses | {"guarded": slow}
            many: dict[str, list[float]] = {name: [] for name in asked}
            for _ in range(3):
                for name, address in asked.items():
                    many[name].append(throughput(address, questions()["32 texts"], options.seconds))
        finally:
            for process in running:
                process.terminate()
    content = {
        "kind": "guard speed",
        "command": "python benchmarks/guard.py",
        "environment": environment(),
        "rounds": options.rounds,
        "median_ms": {n: {way: float(np.median(each)) for way, each in row.items()} for n, row in rows.items()},
        "p95_ms": {
            n: {way: float(np.quantile(each, 0.95)) for way, each in row.items()} for n, row in rows.items()
        },
        "requests_per_second": {way: float(np.median(each)) for way, each in many.items()},
    }
    content["markdown"] = markdown(content)
    print(content["markdown"])
    write_atomic(options.out, json.dumps(content, indent=1).encode() + b"\n")
    return 0


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
    for name, row in content["median_ms"].items():
        high = content["p95_ms"][name]
        direct, proxy, guarded = (row[way] for way in ("direct", "plain proxy", "guarded"))
        shown = " | ".join(f"{row[way]:.2f} ({high[way]:.2f})" for way in ("direct", "plain proxy", "guarded"))
        lines.append(f"| {name} | {shown} | {guarded - direct:.2f} | {guarded - proxy:.2f} |")
    per = content["requests_per_second"]
    lines += [
        "",
        f"{CLIENTS} clients, 32 texts a request, a server that takes 20 ms: {per['direct']:.0f} requests per second "
        f"directly, {per['plain proxy']:.0f} through the plain proxy, {per['guarded']:.0f} guarded "
        f"({per['guarded'] / per['direct']:.2f}).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
