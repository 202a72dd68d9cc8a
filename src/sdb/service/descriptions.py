"""What /openapi.json says of each route: as data, so that the routes stay readable."""

from __future__ import annotations

from typing import Any

from sdb.service.answers import ANSWERS, outputs
from sdb.service.protocol import EXTENSIONS, VERSION
from sdb.service.tensors import INPUT, INPUT_TYPES, OUTPUT_TYPES, SLACK

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
_BYTES = {"schema": {"type": "string", "format": "binary"}}
# What every route refuses, what every POST does, and what those that know the asker do.
_ANYWHERE = dict.fromkeys((421, 431), _ERROR)
_POSTED = _ANYWHERE | dict.fromkeys((400, 403, 408, 413, 415), _ERROR)
_ASKER = {401: _ERROR}
_BUSY = dict.fromkeys((429, 503), _ERROR)


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | optional}


def _optional(kind: str, **more: Any) -> dict[str, Any]:
    """What may be null: it then counts as left out."""
    return {"type": [kind, "null"], **more}


def _parameters(**known: Any) -> dict[str, Any]:
    """Parameters: those that are known, none for shared memory, any others."""
    return _optional("object", properties=known, patternProperties={"^shared_memory_": False})


def _numbers(item: dict[str, Any], depth: int) -> dict[str, Any]:
    """Flat, or nested like the shape."""
    nested = item
    for _ in range(depth):
        nested = {"type": "array", "minItems": 1, "items": nested}
    return {"anyOf": [{"type": "array", "minItems": 1, "items": item}, nested]}


def _input(shape: tuple[int, ...], max_images: int, kinds: list[str], pixel: dict[str, Any]) -> dict[str, Any]:
    sizes = [{"type": "integer", "minimum": 1, "maximum": max_images}, *({"const": size} for size in shape)]
    return _object(
        {
            "name": {"const": INPUT},
            "shape": {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)},
            "datatype": {"enum": kinds},
            "data": _numbers(pixel, len(sizes)),
        },
        parameters=_parameters(binary_data_size={"enum": [0, None]}),
    )


def _request(shape: tuple[int, ...], max_images: int) -> dict[str, Any]:
    whole = {"type": "integer", "minimum": 0, "maximum": 255}
    share = {"type": "number", "minimum": -SLACK, "maximum": 1 + SLACK}
    one = {
        "oneOf": [
            _input(shape, max_images, [kind for kind in INPUT_TYPES if kind != "UINT8"], share),
            _input(shape, max_images, ["UINT8"], whole),
        ]
    }
    names = [output["name"] for policy in ANSWERS for output in outputs(policy, 1)]
    wanted = _object({"name": {"enum": names}}, parameters=_parameters(binary_data=_optional("boolean")))
    return _object(
        {"inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": one}},
        id=_optional("string"),
        outputs=_optional("array", items=wanted),
        parameters=_parameters(binary_data_output=_optional("boolean")),
    )


_METADATA = _object(
    {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
    }
)
_OUTPUT = _object(
    {
        "name": {"type": "string"},
        "datatype": {"enum": list(OUTPUT_TYPES.values())},
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
    data={"type": "array", "items": {"type": "number"}},
    parameters=_object({"binary_data_size": {"type": "integer"}}),
)
_ANSWER = _object(
    {
        "model_name": {"type": "string"},
        "model_version": {"const": VERSION},
        "outputs": {"type": "array", "minItems": 1, "items": _OUTPUT},
    },
    id={"type": "string"},
)


def infer(image_shape: tuple[int, ...], max_images: int) -> dict[str, Any]:
    """The question, as the model takes it.

    What cannot be written down here is checked all the same: that data have as many numbers as the shape says, and that
    the outputs are those of the asker's policy.
    """
    answered = _json("Output tensors.", _ANSWER)
    answered["content"]["application/octet-stream"] = _BYTES
    return {
        "tags": ["protocol"],
        "responses": {200: answered, 404: _ERROR, **_POSTED, **_ASKER, **_BUSY},
        "openapi_extra": {
            "parameters": [
                {
                    "name": "Inference-Header-Content-Length",
                    "in": "header",
                    "required": False,
                    "description": "Bytes of JSON at the body's beginning; the tensors' bytes follow.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _request(image_shape, max_images)},
                    "application/octet-stream": _BYTES,
                },
            },
        },
    }


MODEL: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {
        200: _json(
            "Inputs, outputs, classes.",
            _object(
                {
                    "name": {"type": "string"},
                    "versions": {"type": "array", "items": {"type": "string"}},
                    "platform": {"type": "string"},
                    "inputs": {"type": "array", "items": _METADATA},
                    "outputs": {"type": "array", "items": _METADATA},
                    "parameters": {"type": "object"},
                }
            ),
        ),
        404: _ERROR,
        **_ASKER,
        **_ANYWHERE,
    },
}
READY: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {
        200: _json("It answers.", _object({"name": {"type": "string"}, "ready": {"const": True}})),
        404: _ERROR,
        **_ANYWHERE,
    },
}
SERVER_LIVE: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {200: _json("Yes.", _object({"live": {"const": True}})), **_ANYWHERE},
}
SERVER_READY: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {200: _json("Yes.", _object({"live": {"const": True}, "ready": {"const": True}})), **_ANYWHERE},
}
SERVER: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {
        200: _json(
            "The server.",
            _object(
                {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "extensions": {"type": "array", "items": {"enum": list(EXTENSIONS)}},
                }
            ),
        ),
        **_ANYWHERE,
    },
}
INDEX: dict[str, Any] = {
    "tags": ["protocol"],
    "responses": {
        200: _json(
            "Names, versions, states.",
            {
                "type": "array",
                "items": _object(
                    {"name": {"type": "string"}, "version": {"const": VERSION}, "state": {"const": "READY"}}
                ),
            },
        ),
        403: _ERROR,
        **_ANYWHERE,
    },
}
PREDICT: dict[str, Any] = {
    "tags": ["pictures"],
    "responses": {
        200: _json("The class, and the most probable ones.", {"type": "object"}),
        **_POSTED,
        **_ASKER,
        **_BUSY,
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object({"file": _BYTES["schema"]})},
                "image/*": _BYTES,
            },
        }
    },
}
PIXELS: dict[str, Any] = PREDICT | {
    "responses": PREDICT["responses"]
    | {
        200: _json(
            "Shape [C, H, W]; its bytes, 0 to 255, as base64; what was done to the picture.", {"type": "object"}
        )
    }
}
METRICS: dict[str, Any] = {
    "tags": ["operation"],
    "responses": {
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **_ANYWHERE,
    },
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
