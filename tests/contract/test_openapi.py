"""/openapi.json says what the code checks: what keeps to it is answered, what breaks it is refused, both as it says."""

from itertools import chain
from math import prod

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import jsonschema_rs
import schemathesis
from fastapi.testclient import TestClient
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sdb.service import create_app
from sdb.service.limits import RequestLimits

INFER, JSON = "/v2/models/box/infer", "application/json"
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def app(few, make_net):
    return create_app(make_net(few), limits=RequestLimits(max_batch=4, max_queue=8))


@pytest.fixture(scope="module")
def operations(app):
    """By path; those of a version are the same functions as those without."""

    async def without_end(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    schema = schemathesis.openapi.from_asgi("/openapi.json", without_end)
    found = [operation.ok() for operation in schema.get_all_operations()]
    return {operation.path: operation for operation in found if "{version}" not in operation.path}


def flat(rows):
    return list(chain.from_iterable(map(flat, rows))) if isinstance(rows, list) else [rows]


def complete(case):
    """What no schema can say: as many numbers as the shape has, outputs of this server's policy, no binary part."""
    (tensor,) = case.body["inputs"]
    tensor["shape"] = [int(size) for size in tensor["shape"]]  # 1.0 is whole for a schema, and no size for us
    numbers = flat(tensor["data"])
    tensor["data"] = [numbers[i % len(numbers)] for i in range(prod(tensor["shape"]))]
    for output in case.body.get("outputs") or []:
        output["name"] = "logits"
    case.headers.pop("Inference-Header-Content-Length", None)


def asked(operation, mode, examples):
    """What a server answers to generated requests, each checked against the description; statuses by media type."""
    statuses = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # making a failing request small takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        if mode is POSITIVE and case.media_type == JSON:
            complete(case)
        # Any bytes keep to the description of a picture, or of a binary body.
        without = [] if case.media_type in (None, JSON) else [positive_data_acceptance]
        statuses.add((case.media_type, case.call_and_validate(excluded_checks=without).status_code))

    check()
    return statuses


def test_what_keeps_to_the_description_is_answered(operations):
    assert len(operations) == 10
    for path, operation in operations.items():
        many = path.endswith(("/infer", "/predict", "/pixels"))
        statuses = asked(operation, POSITIVE, 30 if many else 2)
        assert many or statuses == {(None, 200)}
        if path.endswith("/infer"):
            assert (JSON, 200) in statuses and (JSON, 400) not in statuses


def test_what_breaks_the_description_is_refused(operations):
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}", "/v2/models/{name}/ready", "/predict"):
        statuses = asked(operations[path], NEGATIVE, 30 if path.endswith("/infer") else 5)
        assert {status for _, status in statuses} <= {400, 404, 415}
        if path.endswith("/infer"):
            assert (JSON, 400) in statuses


WHOLE = {
    "id": "q",
    "inputs": [
        {
            "name": "image",
            "shape": [2, 1, 8, 8],
            "datatype": "UINT8",
            "data": [0] * 128,
            "parameters": {"binary_data_size": 0, "shared_memory_region": None, "content_type": "np"},
        }
    ],
    "outputs": [{"name": "logits", "parameters": {"binary_data": True, "shared_memory_offset": 0}}],
    "parameters": {"binary_data_output": False, "shared_memory_byte_size": 4, "x": [1]},
    "more": {},
}
OTHERS = (None, True, 0, 7, -1, 0.5, 256, 1e9, "", "x", "FP32", "labels", [], {}, [[]], ["x"], {"x": 1})


def places(value, path=()):
    """Every place in a value, the outermost first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2] if isinstance(value, list) else ())
    for key, child in inner:
        yield from places(child, (*path, key))


def changed(value, path, new):
    """A copy of a value with another one at a place; without that place where the new one is `...`."""
    if not path:
        return new
    copy = value.copy()
    if new is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def test_a_change_anywhere_is_judged_alike_by_the_description_and_the_code(app):
    """But for what a schema cannot say: that data fit the shape, and which outputs this server's policy has."""
    entry = app.openapi()["paths"]["/v2/models/{name}/infer"]["post"]
    schema = jsonschema_rs.validator_for(entry["requestBody"]["content"][JSON]["schema"])
    client, verdicts = TestClient(app), []
    shared = [path for path in places(WHOLE) if str(path[-1:]).startswith("('shared_memory")]
    assert len(shared) == 3 and not schema.is_valid(WHOLE)
    plain = WHOLE
    for path in shared:
        assert client.post(INFER, json=changed(plain, path, 0)).status_code == 400
        plain = changed(plain, path, ...)
    assert schema.is_valid(plain)
    for path in filter(None, places(plain)):
        beyond = path[-2:] == ("shape", 0) or path[-1] == "data" or path == ("outputs", 0, "name")
        for new in (*OTHERS, *([...] if isinstance(path[-1], str) else [])):
            body = changed(plain, path, new)
            said, status = schema.is_valid(body), client.post(INFER, json=body).status_code
            verdicts.append(said)
            assert said == (status == 200) or (beyond and said and status == 400), (path, new, said, status)
    assert 100 < sum(verdicts) < len(verdicts) - 100


def test_other_methods_are_refused_and_those_that_are_there_are_named(app):
    client = TestClient(app)
    for path, entries in app.openapi()["paths"].items():
        there = {method.upper() for method in entries}
        place = path.format(name="box", version="1")
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - there:
            refused = client.request(method, place)
            assert refused.status_code == 405, (method, path)
            assert set(refused.headers["allow"].split(", ")) == there
