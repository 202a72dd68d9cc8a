"""Two guards behind nginx: one Redis, a ledger each, and one of them killed under load."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

for needed in ("fastapi", "uvicorn", "aiohttp"):
    pytest.importorskip(needed)
redis = pytest.importorskip("redis")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
if NGINX is None or shutil.which("redis-server") is None:
    pytest.skip("nginx or redis-server is not installed", allow_module_level=True)

import uvicorn  # noqa: E402

import sdb  # noqa: E402
from sdb.answers.guard import logits_of  # noqa: E402
from sdb.answers.ledger import Ledger  # noqa: E402
from sdb.keys import Owner  # noqa: E402
from sdb.runs.ties import new_ledger  # noqa: E402
from sdb.service.watch import Limits, TokenFile  # noqa: E402
from sdb.tracing.ties import trace_ties  # noqa: E402

CONF = Path(__file__).parents[2] / "examples" / "nginx_guards.conf"
OWNER = Owner(bytes(range(32)))
CLASSES, ROWS, BATCH, CLIENTS = 12, 6000, 10, 6
SMALL, LARGE = 50 * BATCH, 450 * BATCH  # budgets


def outputs():
    """What the model behind the guards says of each row."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(ROWS, CLASSES))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return shares.astype(np.float32), (shares.cumsum(axis=1) > rng.random((ROWS, 1))).argmax(axis=1)


SHARES, LABELS = outputs()


async def model(scope, receive, send):
    """A model whose one input is the number of a row."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    answer = {"name": "rows", "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]}]}
    if scope["path"].endswith("/infer"):
        given = SHARES[json.loads(body)["inputs"][0]["data"]]
        output = answer["outputs"][0] | {"shape": list(given.shape), "data": given.ravel().tolist()}
        answer = {"model_name": "rows", "outputs": [output]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def eventually(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listens(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


class Cluster:
    """All that runs: a model, Redis, two guards, nginx; in `place`."""

    def __init__(self, place, sdb_command):
        self.place, self.command = place, sdb_command
        self.store, self.front = free_port(), free_port()
        self.guards, self.ports, self.running = [], [], []

    def start(self, command, **more):
        self.running.append(subprocess.Popen(command, cwd=self.place, **more))
        return self.running[-1]

    def begin(self):
        self.behind = uvicorn.Server(uvicorn.Config(model, port=0, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.behind.run)
        self.thread.start()
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--port", str(self.store)]
        self.start(["redis-server", *options], stdout=subprocess.DEVNULL)
        eventually(lambda: self.behind.started and listens(self.store))
        behind = self.behind.servers[0].sockets[0].getsockname()[1]
        start, environment = self.command
        command = [
            *start,
            "guard",
            "serve",
            "rows.guard",
            "--upstream",
            f"http://127.0.0.1:{behind}",
            "--port",
            "0",
        ]
        command += ["--model", "rows", "--output", "scores", "--allowed-host", "guards", "--ties", "ties.json"]
        command += [
            "--tokens",
            "tokens.db",
            "--watch",
            f"redis://127.0.0.1:{self.store}/0",
            "--budgets",
            "budgets.json",
        ]
        for number in (1, 2):
            more = ["--ledger", f"ledger{number}.db"]
            self.guards.append(self.start([*command, *more], env=environment, stderr=subprocess.PIPE, text=True))
        for guard in self.guards:
            line = guard.stderr.readline()
            found = re.search(r"http://127.0.0.1:(\d+)", line)
            assert found, line
            self.ports.append(found[1])
        text = CONF.read_text().replace(":8000;", f":{self.front};")
        for written, real in zip(("8001", "8002"), self.ports, strict=True):
            assert f":{written} " in text
            text = text.replace(f":{written} ", f":{real} ")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {self.place / kind};\n" for kind in kinds)
        whole = (
            f"daemon off;\npid {self.place / 'pid'};\nevents {{}}\nhttp {{\naccess_log off;\n{places}{text}}}\n"
        )
        (self.place / "nginx.conf").write_text(whole)
        named = ["-p", str(self.place), "-c", str(self.place / "nginx.conf"), "-e", str(self.place / "error.log")]
        self.start([NGINX, *named])
        eventually(lambda: listens(self.front))

    def end(self):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(20)
            if process.stderr:
                process.stderr.close()
        self.behind.should_exit = True
        self.thread.join()

    def counted(self, name):
        """Examples that the shared store has of an account."""
        return int(redis.Redis(port=self.store).hget("sdb:watch:total", name) or 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, sdb_command):
    """The cluster and its tokens by name."""
    place = tmp_path_factory.mktemp("cluster")
    guard = sdb.guard(None, (SHARES, LABELS), owner=OWNER, partners=("clinic",), tie_budget=0.02)
    guard.save(place / "rows.guard")
    OWNER.save(place / "owner.json")
    for number in (1, 2):
        new_ledger(
            place / "rows.guard",
            out=place / f"ledger{number}.db",
            ties_file=place / "ties.json",
            owner_file=place / "owner.json",
            budget=0.001,
            keep_queries=True,
            days=365,
            cap=5000,
            dataset=None,
            data_root=None,
            other_class_names=False,
            network=None,
        )
    (place / "budgets.json").write_text(json.dumps({"everyone": {"images_day": None, "rate": None}}))
    file = TokenFile(place / "tokens.db", create=True)
    tokens = {
        name: file.add(name, limits=Limits(images_total=most)) for name, most in (("anna", SMALL), ("bob", LARGE))
    }
    tokens["clinic"] = file.add("clinic", OWNER.partner("clinic").id)
    made = Cluster(place, sdb_command)
    with ExitStack() as stack:
        stack.callback(made.end)
        made.begin()
        yield made, tokens, guard.ties(OWNER)


def infer(connection, token, rows):
    """Status and outputs of one request."""
    tensor = {"name": "row", "datatype": "INT64", "shape": [len(rows)], "data": rows.tolist()}
    body = json.dumps({"inputs": [tensor]})
    connection.request("POST", "/v2/models/rows/infer", body, {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        return answer.status, None
    return 200, np.array(json.loads(content)["outputs"][0]["data"], np.float32).reshape(len(rows), CLASSES)


def spend(port, token, mine, said, pause):
    """Ask until the budget is spent; `said` gets when each answer was there, its status, rows and classes."""
    connection, rng = http.client.HTTPConnection("127.0.0.1", port, timeout=20), np.random.default_rng(mine)
    status = 200
    while status != 429:
        rows = rng.integers(0, ROWS, BATCH)
        status, given = infer(connection, token, rows)
        said.append((time.monotonic(), status, rows, None if given is None else given.argmax(axis=1)))
        pause.wait(0.04)


def spending(cluster, token, pause):
    """Clients that spend one account's budget together, and what they are told."""
    said = []
    clients = [threading.Thread(target=spend, args=(cluster.front, token, n, said, pause)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    return said, clients


def test_a_budget_that_two_guards_share_is_kept_by_both(cluster):
    cluster, tokens, _ = cluster
    hurry = threading.Event()
    hurry.set()
    said, clients = spending(cluster, tokens["anna"], hurry)
    for client in clients:
        client.join(60)
    assert {status for _, status, _, _ in said} == {200, 429}
    answered = BATCH * sum(status == 200 for _, status, _, _ in said)
    assert SMALL - BATCH <= answered <= SMALL + BATCH
    eventually(lambda: cluster.counted("anna") == answered)


def test_a_guard_that_is_killed_takes_nothing_with_it(cluster):
    cluster, tokens, ties = cluster
    hurry = threading.Event()
    said, clients = spending(cluster, tokens["bob"], hurry)
    eventually(lambda: said and said[0][0] < time.monotonic() - 1.8)
    killed = time.monotonic()
    cluster.guards[1].kill()
    hurry.set()
    for client in clients:
        client.join(60)

    statuses = [status for _, status, _, _ in said]
    answered, lost = (BATCH * statuses.count(status) for status in (200, 502))
    assert set(statuses) <= {200, 429, 502}
    assert lost <= BATCH * CLIENTS  # what was on its way
    assert sum(status == 200 and when > killed for when, status, _, _ in said) > CLIENTS
    late = BATCH * sum(status == 200 and killed - 1 < when <= killed for when, status, _, _ in said)
    assert answered <= LARGE + BATCH
    eventually(lambda: cluster.counted("bob") >= answered - late)
    assert cluster.counted("bob") <= answered + lost

    account = next(
        row.principal.account
        for row in TokenFile(cluster.place / "tokens.db").rows()
        if row.principal.name == "bob"
    )
    told, before = {}, set()
    for when, status, rows, classes in said:
        if status != 200:
            continue
        told |= dict(zip(rows.tolist(), classes.tolist(), strict=True))
        found = ties.find(logits_of(SHARES[rows], "probabilities"))
        if when < killed - 1.0:
            before |= set(zip(found.cells.tolist(), *found.pairs.T.tolist(), strict=True))
    ledgers = [Ledger(cluster.place / f"ledger{number}.db") for number in (1, 2)]
    kept = [{(e.cell, e.first, e.second) for e in ledger.entries(account)} for ledger in ledgers]
    assert all(kept) and kept[0] != kept[1]
    assert len(before) > 20
    assert before <= kept[0] | kept[1]

    def copied(queries):
        return np.array([told.get(int(row), int(SHARES[int(row)].argmax())) for row in queries])

    found = trace_ties(copied, ledgers, ties, OWNER.queries_key)
    assert [each.account for each in found.accounts if each.named] == [account]
    for ledger in ledgers:
        ledger.close()


def test_the_guard_that_is_left_goes_on_answering(cluster):
    cluster, tokens, _ = cluster
    connection = http.client.HTTPConnection("127.0.0.1", cluster.front, timeout=20)
    rows = np.arange(BATCH)
    for _ in range(30):
        status, given = infer(connection, tokens["clinic"], rows)
        assert status == 200
        assert (given == SHARES[rows]).all()
    assert infer(connection, tokens["bob"], rows)[0] == infer(connection, tokens["anna"], rows)[0] == 429
