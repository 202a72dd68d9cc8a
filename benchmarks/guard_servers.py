"""The servers of benchmarks/guard.py: a model of the protocol by HTTP and by gRPC, and a proxy that reads nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import numpy as np

CLASSES, OUTPUT = 1000, "scores"


def row() -> np.ndarray:
    """What every example is answered with."""
    found = np.full(CLASSES, 0.2 / (CLASSES - 1), dtype="<f4")
    found[7] = 0.8
    return found


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
        data = row().tobytes() * count
        tensor = {"name": OUTPUT, "datatype": "FP32", "shape": [count, CLASSES]}
        tensor["parameters"] = {"binary_data_size": len(data)}
        text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()
        headers = [(b"inference-header-content-length", str(len(text)).encode())]
        content = text + data
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


async def by_grpc() -> None:
    """The same model by gRPC, until the process ends; the port is the first line."""
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as service

    class Behind(service.GRPCInferenceServiceServicer):
        async def ModelInfer(self, request: Any, context: Any) -> Any:
            count = request.inputs[0].shape[0]
            answer = messages.ModelInferResponse(model_name="m", model_version="1")
            answer.outputs.add(name=OUTPUT, datatype="FP32", shape=[count, CLASSES])
            answer.raw_output_contents.append(row().tobytes() * count)
            return answer

    server = grpc.aio.server()
    service.add_GRPCInferenceServiceServicer_to_server(Behind(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "grpc":
        asyncio.run(by_grpc())
    else:
        serve(behind if what == "http" else plain_proxy(what))
