"""What /openapi.json says of each route: as data, so that the routes stay readable."""

from __future__ import annotations

from typing import Any

from sdb.service.protocol import VERSION

APP = (
    "Images in, the answers of a box out. The protocol is the Open Inference Protocol v2 over HTTP; pixels are in "
    "[0, 1]. A token goes into the header `Authorization: Bearer TOKEN`."
)

_ERROR = {
    "description": "Refused; says why.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "examples": ["image"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "enum": ["FP32", "FP16", "FP64", "UINT8"]},
        "data": {"type": "array", "description": "Flat, or nested like the shape; left out for binary tensors."},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
                },
            },
        },
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_BUSY = {429: _ERROR, 503: _ERROR}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


INFER: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {
        200: _json("Output tensors.", _ANSWER),
        **dict.fromkeys((400, 404, 408, 413, 415), _ERROR),
        **_BUSY,
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "required": False,
                "description": "Bytes of JSON at the body's beginning; the tensors' bytes follow.",
                "schema": {"type": "integer"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _REQUEST}, "application/octet-stream": _PICTURE},
        },
    },
}
MODEL: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {200: _json("Inputs, outputs, classes.", {"type": "object"}), 404: _ERROR},
}
READY: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {200: _json("It answers.", {"type": "object"}), 404: _ERROR},
}
LIVE: dict[str, Any] = {"tags": ["protocol"], "responses": {200: _json("Yes.", {"type": "object"})}}
SERVER: dict[str, Any] = {"tags": ["protocol"], "responses": {200: _json("The server.", {"type": "object"})}}
INDEX: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {200: _json("Names, versions, states.", {"type": "array", "items": {"type": "object"}})},
}
PREDICT: dict[str, Any] = {
    "tags": ["pictures"],
    "responses": {
        200: _json("The class, and the most probable ones.", {"type": "object"}),
        **dict.fromkeys((400, 408, 413, 415), _ERROR),
        **_BUSY,
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _PICTURE["schema"]}}},
                "image/*": _PICTURE,
            },
        }
    },
}
METRICS: dict[str, Any] = {
    "tags": ["operation"],
    "responses": {200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
}


def with_path(route: dict[str, Any], path: str, model: str) -> dict[str, Any]:
    """A route's description with the parameters of its path: `{name}`, which is the model's, and `{version}`."""
    extra = route.get("openapi_extra", {})
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}}
        for name, value in (("name", model), ("version", VERSION))
        if f"{{{name}}}" in path
    ]
    return route | {"openapi_extra": extra | {"parameters": [*named, *extra.get("parameters", [])]}}
