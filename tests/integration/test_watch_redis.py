"""The watch on a real Redis server."""

import shutil
import socket
import subprocess
import threading
import time

import pytest

from sdb.errors import StorageError
from sdb.service.watch import Limits, LimitSet, Principal, TokenFile, Watch
from sdb.service.watch.counts import Count
from sdb.service.watch.limits import day_of
from sdb.service.watch.store import open_store

redis = pytest.importorskip("redis")
if shutil.which("redis-server") is None:
    pytest.skip("redis-server is not installed", allow_module_level=True)


def start(port, folder):
    process = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "yes"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            return process
        except redis.ConnectionError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError("redis-server did not start")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Port and folder of a Redis server with an append-only file, and a list that holds its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    running = [start(port, folder)]
    yield port, folder, running
    running[0].kill()
    running[0].wait()


@pytest.fixture
def url(server):
    redis.Redis(port=server[0]).flushall()
    return f"redis://127.0.0.1:{server[0]}/0"


def eventually(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_counts_and_alerts_are_those_of_a_file(url):
    store = open_store(url)
    store.add([Count("anna", 10, 5, 5), Count("bert", 10, 1, 1)])
    store.add([Count("anna", 10, 2, 2)])
    store.add([Count("anna", 11, 4, 3)])
    assert store.counts(10)["anna"] == Count("anna", 10, 11, 7)
    assert store.counts(11) == {"anna": Count("anna", 11, 11, 3), "bert": Count("bert", 11, 1, 0)}
    for number in range(3):
        store.keep_alert({"number": number})
    assert [alert["number"] for alert in store.alerts()] == [0, 1, 2]
    store.close()


def test_two_servers_share_a_budget_and_a_restart_continues(url, tmp_path):
    tokens = TokenFile(tmp_path / "tokens.db", create=True)
    tokens.add("anna")
    limits = LimitSet(named=Limits(images_total=10))
    first, second = (Watch.open(url, tokens.path, limits, alerts=tmp_path / "alerts") for _ in range(2))
    assert first.admit(Principal("anna"), 9).allowed
    eventually(lambda: second._accounts.volume("anna")["total"] == 9)
    assert not second.admit(Principal("anna"), 2).allowed
    first.close()
    second.close()
    third = Watch.open(url, tokens.path, limits, alerts=tmp_path / "alerts")
    assert not third.admit(Principal("anna"), 2).allowed and third.admit(Principal("anna"), 1).allowed
    kinds = {alert["kind"] for alert in third._store.alerts()}
    third.close()
    assert kinds == {"volume_total", "refused_total"}


@pytest.mark.parametrize("limits", [Limits(images_total=1000), Limits(images_day=1000)])
def test_two_servers_that_are_asked_at_once_do_not_exceed_a_budget(url, tmp_path, limits):
    tokens = TokenFile(tmp_path / "tokens.db", create=True)
    tokens.add("anna")
    both = [Watch.open(url, tokens.path, LimitSet(named=limits), alerts=tmp_path / "alerts") for _ in range(2)]
    admitted = []

    def ask(watch):
        while watch.admit(Principal("anna"), 3).allowed:
            admitted.append(3)

    clients = [threading.Thread(target=ask, args=(watch,)) for watch in both for _ in range(3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert sum(admitted) == 999
    counts = open_store(url).counts(day_of())
    assert counts["anna"].total == counts["anna"].today == counts["*"].total == 999
    assert both[0].admit(Principal("anna"), 1).allowed and not both[1].admit(Principal("anna"), 1).allowed
    for watch in both:
        watch.close()
    assert open_store(url).counts(0)["anna"].total == 1000  # nothing of it was written again


def test_what_a_budget_refuses_does_not_weigh_on_the_rate(url, tmp_path):
    tokens = TokenFile(tmp_path / "tokens.db", create=True)
    tokens.add("anna")
    limits = LimitSet(named=Limits(images_total=10, rate=0.001, burst=10))
    first, second = (Watch.open(url, tokens.path, limits, alerts=tmp_path / "alerts") for _ in range(2))
    assert first.admit(Principal("anna"), 8).allowed
    refused = second.admit(Principal("anna"), 8)
    assert (refused.allowed, refused.status) == (False, 429)
    assert "budget" in refused.reason
    assert second.admit(Principal("anna"), 2).allowed
    first.close()
    second.close()


def test_a_redis_server_that_goes_away_and_comes_back_loses_nothing(url, server, tmp_path):
    port, folder, running = server
    watch = Watch.open(url, None, LimitSet(anonymous=Limits(images_total=12)), alerts=tmp_path / "alerts")
    who = watch.identify(None)
    assert watch.admit(who, 5).allowed
    eventually(lambda: open_store(url).counts(0).get("anonymous") is not None)
    running[0].kill()
    running[0].wait()
    assert watch.admit(who, 5).allowed  # answered from memory meanwhile
    eventually(lambda: watch.metrics()["store_errors"] > 0)
    running[0] = start(port, folder)
    eventually(lambda: open_store(url).counts(0)["anonymous"].total == 10)
    assert not watch.admit(who, 5).allowed
    watch.close()


def test_a_server_that_is_not_there_is_said_without_its_password():
    with pytest.raises(StorageError, match="Redis server cannot be used") as caught:
        open_store("redis://user:hunter2@127.0.0.1:1/0")
    assert "hunter2" not in str(caught.value)
