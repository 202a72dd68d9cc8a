"""Who may send a request: programs and our own page, not pages of other sites, nor anybody by a foreign name."""

import json

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from sdb.errors import ConfigError
from sdb.service import create_app
from sdb.service.origins import known_names

INFER = "/v2/models/box/infer"
QUESTION = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
)
HERE = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def net(few, make_net):
    return make_net(few)


@pytest.fixture(scope="module")
def local(net):
    """As `sdb serve` makes it on loopback, with one more name."""
    return TestClient(create_app(net, allowed_hosts=["Models.example.com"]), base_url=f"http://{HERE}")


@pytest.fixture(scope="module")
def anywhere(net):
    """As in a container, or under another server."""
    return TestClient(create_app(net), base_url="http://server:8000")


def status(client, kind, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(INFER, content=QUESTION, headers={"content-type": kind, **headers}).status_code


@pytest.mark.parametrize("kind", ["text/plain", "Text/Plain;charset=UTF-8", "multipart/form-data; boundary=x",
                                  "application/x-www-form-urlencoded", "", " text/plain ;a=b"])  # fmt: skip
@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
        {"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:3000"},
        {"sec_fetch_site": "cross-site", "origin": f"http://{HERE}"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"origin": "http://models.example.com.evil.example"},
    ],
)
def test_a_page_of_another_site_may_not_ask(local, kind, headers):
    assert status(local, kind, **headers) == 403
    refused = local.post("/v2/repository/index", content=b"", headers={"content-type": kind, "origin": "null"})
    assert refused.status_code == 403 and list(refused.json()) == ["error"]


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        # Programs: no browser's headers, any type or none.
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("", {}),
        # Our own page, and a browser too old to say more than the origin.
        ("text/plain", {"sec_fetch_site": "same-origin", "origin": f"http://{HERE}"}),
        ("text/plain", {"sec_fetch_site": "none"}),
        ("text/plain", {"origin": f"http://{HERE}"}),
        # Under a name that the owner gave, through whatever proxy.
        ("text/plain", {"origin": "https://models.example.com"}),
        ("text/plain", {"sec_fetch_site": "cross-site", "origin": "https://MODELS.example.com:8443"}),
        # A browser asked first, and somebody in front of us gave leave.
        ("application/json", {"sec_fetch_site": "cross-site", "origin": "https://partner.example"}),
        ("application/octet-stream", {"origin": "https://partner.example"}),
    ],
)
def test_everybody_else_may(local, kind, headers):
    assert status(local, kind, **headers) == 200


def test_nobody_is_given_leave_to_read(local):
    asked = local.options(
        INFER, headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert asked.status_code == 405
    read = local.get("/v2", headers={"origin": "https://evil.example", "sec-fetch-site": "cross-site"})
    assert not [name for name in (*asked.headers, *read.headers) if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example",
                                  "localhost.evil.example", "evil@127.0.0.1", "xmodels.example.com", ""])  # fmt: skip
def test_a_foreign_name_is_refused_on_loopback_and_only_there(local, anywhere, host):
    for path in ("/v2/health/live", "/", "/openapi.json", "/nothing"):
        refused = local.get(path, headers={"host": host})
        assert refused.status_code == 421 and "--allowed-host" in refused.json()["error"]
    assert local.post(INFER, content=QUESTION, headers={"host": host}).status_code == 421
    assert anywhere.get("/v2", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9:1", "localhost", "LOCALHOST:8000", "localhost.",
                                  "a.localhost", "[::1]:8000", "[::1]", "192.168.1.7:8000", "models.example.com",
                                  "models.example.com.", "Models.Example.com:443"])  # fmt: skip
def test_our_own_names_and_addresses_are_served(local, host):
    assert local.get("/v2", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("name", ["", "http://a.example", "a.example:8000", "a.example/x", "*", "a b", "a..b"])
def test_what_is_no_name_is_refused_at_the_start(name):
    with pytest.raises(ConfigError, match="models.example.com"):
        known_names([name])


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/box/ready", "/v2/models/box",
                                  "/v2", "/v2/", "/metrics", "/openapi.json", "/docs", "/", "/page.js"])  # fmt: skip
def test_head_is_get_without_the_body(anywhere, path):
    got, asked = anywhere.get(path), anywhere.head(path)
    assert (asked.status_code, asked.content) == (got.status_code, b"") == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # whose numbers grow
        assert asked.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("path", [INFER, "/predict", "/nothing", "/v2/models/other"])
def test_head_is_refused_where_get_is(anywhere, path):
    assert anywhere.head(path).status_code == anywhere.get(path).status_code != 200


def test_no_answer_is_guessed_at(local, anywhere):
    """Pages, files, JSON, text, refusals of every kind."""
    answers = [
        *(
            anywhere.get(path)
            for path in ("/", "/page.js", "/icon.svg", "/docs", "/openapi.json", "/metrics", "/v2")
        ),
        *(anywhere.get(path) for path in ("/nothing", INFER, "/v2/models/other", "/v2?" + "x" * 40_000)),
        *(anywhere.post(path, content=b"x") for path in ("/predict", INFER, "/v2")),
        anywhere.head("/v2"),
        anywhere.post(INFER, content=QUESTION),
        local.get("/v2", headers={"host": "evil.example"}),
        local.post(INFER, content=QUESTION, headers={"origin": "null"}),
    ]
    assert {answer.status_code for answer in answers} >= {200, 400, 403, 404, 405, 415, 421, 431}
    assert [answer.headers.get_list("x-content-type-options") for answer in answers] == [["nosniff"]] * len(
        answers
    )
