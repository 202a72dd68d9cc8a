"""Pages for people: the one at `/`, where its files are there, and a list of the routes at `/docs`.

Nothing on them comes from elsewhere, and the headers tell the browser so.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

STATIC = Path(__file__).parent / "static"
SECURITY = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def add_pages(app: FastAPI) -> None:
    """Add `/docs`, and one route for every file of the page; nothing else on the disk can be asked for."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(route_list(app), headers=SECURITY)

    for file in sorted(STATIC.rglob("*")) if STATIC.is_dir() else []:
        path = "/" + file.relative_to(STATIC).as_posix().removesuffix("index.html")
        if file.is_file():
            app.add_api_route(path, _sender(file), methods=["GET", "HEAD"], include_in_schema=False)


def _sender(file: Path) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def send(request: Request) -> Response:
        return FileResponse(file, headers=SECURITY)

    return send


def route_list(app: FastAPI) -> str:
    """An HTML page that lists the routes of /openapi.json, without scripts or styles."""
    rows = [
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(entry.get('description', ''))}</td></tr>"
        for path, entries in app.openapi()["paths"].items()
        for method, entry in entries.items()
    ]
    title = escape(app.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f"<p>{escape(app.description)}</p><table>{''.join(rows)}</table>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a></p></html>'
    )
