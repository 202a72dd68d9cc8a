"""Tensors and requests as they come over the wire: what is read exactly, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from sdb.service.answers import ANSWERS, answer, outputs, softmax
from sdb.service.limits import MAX_JSON, Refusal
from sdb.service.protocol import check_wanted, read_request, write_response
from sdb.service.tensors import INPUT_TYPES

SHAPE = (1, 2, 3)
PIXELS = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 1, 2, 3)


def asked(request, binary=b"", with_size=None):
    text = json.dumps(request).encode() if not isinstance(request, bytes) else request
    size = str(len(text)) if (binary or with_size) else None
    return read_request(text + binary, size, SHAPE, max_images=4)


def tensor(**changes):
    given = {"name": "image", "shape": [2, 1, 2, 3], "datatype": "FP32", "data": PIXELS.ravel().tolist()}
    return {name: value for name, value in (given | changes).items() if value is not None}


def of_bytes(values, kind, **changes):
    data = values.astype(INPUT_TYPES[kind]).tobytes()
    return tensor(datatype=kind, data=None, parameters={"binary_data_size": len(data)}, **changes), data


@pytest.mark.parametrize("nested", [False, True])
def test_json_numbers_are_read_exactly(nested):
    data = PIXELS.tolist() if nested else PIXELS.ravel().tolist()
    request = asked({"inputs": [tensor(data=data)], "id": "a", "unknown": 1})
    np.testing.assert_array_equal(request.images, PIXELS)
    assert request.images.dtype == np.float32
    assert request.id == "a"
    assert not request.as_bytes


@pytest.mark.parametrize(("kind", "tolerance"), [("FP32", 0), ("FP64", 0), ("FP16", 1e-3)])
def test_bytes_are_read_exactly(kind, tolerance):
    entry, data = of_bytes(PIXELS, kind)
    request = asked({"inputs": [entry], "parameters": {"binary_data_output": True}}, data)
    np.testing.assert_allclose(request.images, PIXELS, atol=tolerance)
    assert request.images.flags.aligned
    assert request.images.flags.writeable
    assert request.as_bytes


@pytest.mark.parametrize("as_bytes", [False, True])
def test_whole_numbers_are_divided_by_255(as_bytes):
    values = np.arange(244, 256).reshape(2, 1, 2, 3)
    entry, data = of_bytes(values, "UINT8") if as_bytes else (tensor(datatype="UINT8", data=values.tolist()), b"")
    np.testing.assert_array_equal(asked({"inputs": [entry]}, data).images, values.astype(np.float32) / 255)


def test_a_keyed_image_may_be_off_by_rounding():
    asked({"inputs": [tensor(data=[1.0000001] * 12)]})


REFUSED = {
    "no object": b"[]",
    "no JSON": b"{",
    "deep JSON": b"[" * 100_000,
    "long number": b'{"inputs": ' + b"9" * 10_000 + b"}",
    "no inputs": {},
    "inputs null": {"inputs": None},
    "inputs of text": {"inputs": ["image"]},
    "two inputs": {"inputs": [tensor(), tensor()]},
    "another name": {"inputs": [tensor(name="pixels")]},
    "id": {"inputs": [tensor()], "id": 7},
    "outputs": {"inputs": [tensor()], "outputs": {}},
    "nameless output": {"inputs": [tensor()], "outputs": [{"name": []}]},
    "datatype": {"inputs": [tensor(datatype="BYTES")]},
    "datatype list": {"inputs": [tensor(datatype=["FP32"])]},
    "no shape": {"inputs": [tensor(shape=None)]},
    "flat shape": {"inputs": [tensor(shape=[12])]},
    "other shape": {"inputs": [tensor(shape=[2, 1, 3, 2])]},
    "no images": {"inputs": [tensor(shape=[0, 1, 2, 3], data=[])]},
    "negative": {"inputs": [tensor(shape=[-1, 1, 2, 3])]},
    "bool shape": {"inputs": [tensor(shape=[True, True, 2, 3], data=[0.0] * 6)]},
    "float shape": {"inputs": [tensor(shape=[2.0, 1, 2, 3])]},
    "no data": {"inputs": [tensor(data=None)]},
    "text": {"inputs": [tensor(data=["0.5"] * 12)]},
    "null": {"inputs": [tensor(data=[None] * 12)]},
    "bool": {"inputs": [tensor(data=[True] * 12)]},
    "ragged": {"inputs": [tensor(data=[[[[0, 0, 0], [0, 0]]], [[[0, 0, 0], [0, 0, 0]]]])]},
    "half nested": {"inputs": [tensor(data=[[0.0] * 6] * 2)]},
    "too few": {"inputs": [tensor(data=[0.0] * 11)]},
    "NaN": {"inputs": [tensor(data=[float("nan")] * 12)]},
    "infinite": {"inputs": [tensor(data=[float("inf")] * 12)]},
    "beyond float32": {"inputs": [tensor(data=[1e300] * 12)]},
    "beyond float": {"inputs": [tensor(data=[10**400] * 12)]},
    "above 1": {"inputs": [tensor(data=[1.01] * 12)]},
    "below 0": {"inputs": [tensor(data=[-0.01] * 12)]},
    "256": {"inputs": [tensor(datatype="UINT8", data=[256] * 12)]},
    "fractions of UINT8": {"inputs": [tensor(datatype="UINT8", data=[0.5] * 12)]},
    "bytes that are not there": {"inputs": [of_bytes(PIXELS, "FP32")[0]]},
    "shared memory beside data": {"inputs": [tensor(parameters={"shared_memory_offset": 0})]},
    "outputs in shared memory": {
        "inputs": [tensor()],
        "outputs": [
            {"name": "logits", "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 80}}
        ],
    },
    "parameters": {"inputs": [tensor()], "parameters": ["binary_data_output"]},
    "parameters of an input": {"inputs": [tensor(parameters="x")]},
    "parameters of an output": {"inputs": [tensor()], "outputs": [{"name": "logits", "parameters": 1}]},
    "flag": {"inputs": [tensor()], "parameters": {"binary_data_output": "false"}},
    "flag of an output": {
        "inputs": [tensor()],
        "outputs": [{"name": "logits", "parameters": {"binary_data": 0}}],
    },
    "shared memory": {"inputs": [tensor(data=None, parameters={"shared_memory_region": "x"})]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused(name):
    with pytest.raises(Refusal) as refusal:
        asked(REFUSED[name])
    assert refusal.value.status == 400
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("count", [5, 10**400])
def test_more_images_than_a_batch_are_too_large(count):
    with pytest.raises(Refusal, match="at most 4") as refusal:
        asked({"inputs": [tensor(shape=[count, 1, 2, 3])]})
    assert refusal.value.status == 413
    assert len(str(refusal.value)) < 300


def test_long_text_among_data_costs_no_memory():
    """An array of text would take the longest text's size for every entry: 12 TB here."""
    with pytest.raises(Refusal):
        read_request(
            json.dumps({"inputs": [tensor(shape=[1000, 1, 2, 3], data=["x" * 2**20] + ["y"] * 5999)]}).encode(),
            None,
            SHAPE,
            max_images=1000,
        )


@pytest.mark.parametrize("extra", [b"", b"x", b"x" * 100])
def test_bytes_and_sizes_must_agree(extra):
    entry, data = of_bytes(PIXELS, "FP32")
    with pytest.raises(Refusal):
        asked({"inputs": [entry]}, data[:-4] + extra)
    entry["data"] = [0.0] * 12
    with pytest.raises(Refusal):
        asked({"inputs": [entry]}, data)
    entry.pop("data")
    entry["parameters"]["binary_data_size"] = True
    with pytest.raises(Refusal):
        asked({"inputs": [entry]}, data)


@pytest.mark.parametrize("size", ["-1", "1e3", "", " 5", "5_0", "٣", "99999999", "9" * 5000])
def test_a_wrong_size_of_the_json_is_refused(size):
    text = json.dumps({"inputs": [tensor()]}).encode()
    with pytest.raises(Refusal) as refusal:
        read_request(text, size, SHAPE, 4)
    assert refusal.value.status == 400


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=8)))
def test_random_bytes_are_refused_and_nothing_else_happens(body, size):
    with pytest.raises(Refusal):
        read_request(body, size, SHAPE, 4)


def test_what_is_null_is_left_out():
    """At every place where the protocol says optional."""
    plain = asked({"inputs": [tensor()], "outputs": [{"name": "logits"}]})
    null = {"id": None, "parameters": None, "inputs": [tensor() | {"parameters": None}]}
    for more in (
        {"outputs": [{"name": "logits", "parameters": None}]},
        {"outputs": [{"name": "logits", "parameters": {"binary_data": None}}]},
        {"outputs": [{"name": "logits"}], "parameters": {"binary_data_output": None}},
    ):
        given = asked(null | more)
        assert (given.id, given.wanted, given.as_bytes) == (plain.id, plain.wanted, plain.as_bytes)
    given = asked(null | {"outputs": None, "inputs": [tensor(parameters={"binary_data_size": None})]})
    assert (given.id, given.wanted) == (None, {})
    entry, data = of_bytes(PIXELS, "FP32")
    np.testing.assert_array_equal(asked({"inputs": [entry | {"data": None}]}, data).images, PIXELS)


@pytest.mark.parametrize("name", ["", "q", "\u20ac", "\ud800", " ", "null"])
def test_every_id_comes_back(name):
    def said(**more):
        body, _ = write_response(asked({"inputs": [tensor()], **more}), answer(LOGITS, "logits"), "box")
        return json.loads(body)

    assert said(id=name)["id"] == name
    assert "id" not in said() and "id" not in said(id=None)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_numbers_in_json_are_exact_and_all_of_one_length(numbers):
    values = np.array([numbers], np.float32)
    request = asked({"inputs": [tensor()]})
    body, _ = write_response(request, {"logits": values}, "box")
    back = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(back.view(np.uint32), values.ravel().view(np.uint32))
    assert len(body) == len(write_response(request, {"logits": np.zeros_like(values)}, "box")[0])


LOGITS = np.array([[0.0, 3.0, 3.0, -1.0, 2.0, 1.0, 1.5], [9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize("policy", ANSWERS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_answer_is_what_the_metadata_say(policy, as_bytes):
    request = asked({"inputs": [tensor()], "id": "q", "parameters": {"binary_data_output": as_bytes}})
    tensors = answer(LOGITS, policy)
    body, headers = write_response(request, tensors, "box")
    size = int(headers.get("inference-header-content-length", len(body)))
    said = json.loads(body[:size])
    assert (said["model_name"], said["model_version"], said["id"]) == ("box", "1", "q")
    offset = size
    for entry, described in zip(said["outputs"], outputs(policy, 7), strict=True):
        assert entry["name"] == described["name"]
        assert entry["datatype"] == described["datatype"]
        assert entry["shape"] == [2, *described["shape"][1:]]
        expected = tensors[entry["name"]]
        if as_bytes:
            length = entry["parameters"]["binary_data_size"]
            values = np.frombuffer(body[offset : offset + length], expected.dtype)
            offset += length
        else:
            values = np.array(entry["data"], expected.dtype)
        np.testing.assert_array_equal(values.reshape(expected.shape), expected)
    assert offset == len(body)


def test_policies_give_less_and_less():
    assert softmax(LOGITS).sum(axis=1) == pytest.approx(1)
    np.testing.assert_array_equal(answer(LOGITS, "labels")["labels"], [1, 0])
    best = answer(LOGITS, "top_k")
    np.testing.assert_array_equal(best["top_k"], [[1, 2, 4, 6, 5], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(
        best["top_k_probabilities"], np.take_along_axis(softmax(LOGITS), best["top_k"], axis=1)
    )
    assert np.isfinite(softmax(np.array([[1e30, -1e30]], np.float32))).all()


def test_only_what_is_given_can_be_asked_for():
    request = asked({"inputs": [tensor()], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]})
    check_wanted(request, outputs("logits", 7))
    with pytest.raises(Refusal, match="probabilities"):
        check_wanted(request, outputs("probabilities", 7))


def test_long_json_is_refused_before_it_is_parsed():
    with pytest.raises(Refusal, match="binary tensors") as refusal:
        asked(b" " * (MAX_JSON + 1))
    assert refusal.value.status == 413
    entry, data = of_bytes(PIXELS, "FP32")
    text = json.dumps({"inputs": [entry]}).encode()
    # What follows the JSON does not count.
    with pytest.raises(Refusal, match="binary_data_size"):
        read_request(text + data + bytes(MAX_JSON), str(len(text)), SHAPE, max_images=4)
