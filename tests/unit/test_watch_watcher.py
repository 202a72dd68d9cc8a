"""The watch as the server calls it."""

import json
import logging
import threading
import time

import numpy as np
import pytest

from sdb.errors import ConfigError, StorageError
from sdb.service.watch import ANONYMOUS, Limits, LimitSet, Principal, TokenFile, Watch
from sdb.service.watch.alerts import Alert, AlertBook, alert_log
from sdb.service.watch.observer import MAX_WAITING_BYTES
from sdb.service.watch.store import SqliteStore
from sdb.service.watch.tokens import TokenExpiredError, account_of, digest_of

NONE = LimitSet(anonymous=Limits(), named=Limits(), everyone=Limits())


@pytest.fixture
def tokens(tmp_path):
    return TokenFile(tmp_path / "tokens.db", create=True)


@pytest.fixture
def open_watch(tmp_path, tokens):
    """A function that opens a watch on one store, tokens and alerts; all are closed at the end."""
    opened = []

    def open_it(limits=NONE, **options):
        options = {"alerts": tmp_path / "alerts.jsonl"} | options
        opened.append(Watch.open(tmp_path / "watch.db", tokens.path, limits, **options))
        return opened[-1]

    yield open_it
    for watch in opened:
        watch.close()


def alerts_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def eventually(true):
    """Wait for what another thread does, at most as long as a slow machine needs."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_has_no_valid_token_is_anonymous(open_watch, tokens):
    token, old = tokens.add("anna", "ab" * 16, "labels"), tokens.add("bert")
    tokens.revoke("bert")
    watch = open_watch()
    assert watch.identify(token) == Principal("anna", "ab" * 16, "labels", account_of(digest_of(token)))
    assert {watch.identify(other) for other in (None, "", "x", old, token + " ")} == {ANONYMOUS}


def test_a_running_watch_sees_tokens_made_and_revoked(open_watch, tokens):
    watch = open_watch()
    token = tokens.add("anna")
    eventually(lambda: watch.identify(token).name == "anna")
    tokens.revoke("anna")
    eventually(lambda: watch.identify(token) is ANONYMOUS)


def test_everybody_is_anonymous_where_there_is_no_token_file():
    watch = Watch.open()
    assert watch.identify("x") is ANONYMOUS and watch.admit(ANONYMOUS, 1).allowed
    watch.close()


def test_refusals_say_429_and_why_and_when(open_watch, tokens):
    tokens.add("small", limits=Limits(images_total=10, rate=1.0, burst=4))
    watch = open_watch(LimitSet(anonymous=Limits(images_day=3)))
    small = Principal("small")
    assert watch.admit(small, 4) == watch.admit(Principal("other"), 4)
    slow = watch.admit(small, 4)
    assert (slow.allowed, slow.status) == (False, 429) and "rate" in slow.reason and 3 < slow.retry_after <= 4
    spent = watch.admit(ANONYMOUS, 4)
    assert spent.status == 429 and "daily budget" in spent.reason and 0 < spent.retry_after <= 86_400
    assert watch.admit(ANONYMOUS, 3).allowed  # what was refused did not count
    with pytest.raises(ConfigError):
        watch.admit(small, 0)


def test_a_token_expires_while_the_server_runs(tokens):
    token = tokens.add("anna", lasts=60.0)
    now = [tokens.rows()[0].created]
    watch = Watch(SqliteStore(":memory:"), tokens, clock=lambda: now[0])
    assert watch.identify(token).name == "anna"
    now[0] += 61
    with pytest.raises(TokenExpiredError):
        watch.identify(token)
    assert watch.identify("x") is ANONYMOUS and watch.identify(None) is ANONYMOUS
    watch.close()


def test_everyone_together_has_a_budget_that_partners_are_not_in(open_watch):
    watch = open_watch(LimitSet(named=Limits(), everyone=Limits(images_day=10)))
    assert watch.admit(Principal("a"), 6).allowed
    refused = watch.admit(Principal("b"), 6)
    assert refused.status == 429 and "all principals together" in refused.reason
    assert watch.admit(Principal("b"), 4).allowed
    assert watch.admit(Principal("partner", "ab" * 16), 1_000).allowed


def test_threads_together_get_exactly_the_budget(open_watch):
    watch = open_watch(LimitSet(named=Limits(images_total=1_000), everyone=Limits()))
    allowed = []

    def ask():
        allowed.append(sum(watch.admit(Principal("anna"), 1).allowed for _ in range(400)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 1_000


def test_a_restart_continues_where_the_last_one_stopped(open_watch, tokens):
    tokens.add("anna", limits=Limits(images_total=10))
    first = open_watch()
    assert first.admit(Principal("anna"), 7).allowed
    first.close()
    first.close()
    second = open_watch()
    assert not second.admit(Principal("anna"), 4).allowed and second.admit(Principal("anna"), 3).allowed


def test_two_servers_on_one_store_share_a_budget(open_watch, tokens):
    tokens.add("anna", limits=Limits(images_total=10))
    first, second = open_watch(), open_watch()
    assert first.admit(Principal("anna"), 6).allowed
    eventually(lambda: second._accounts.volume("anna")["total"] == 6)
    assert not second.admit(Principal("anna"), 5).allowed and second.admit(Principal("anna"), 4).allowed
    eventually(lambda: first._accounts.volume("anna")["total"] == 10)


def test_a_budget_nearly_spent_and_one_refused_are_told_once(open_watch, tokens, tmp_path):
    secret = tokens.add("anna", limits=Limits(images_total=100))
    watch = open_watch()
    for _ in range(200):
        watch.admit(watch.identify(secret), 1)
    watch.close()
    first, second = alerts_in(tmp_path / "alerts.jsonl")
    assert [first["kind"], second["kind"]] == ["volume_total", "refused_total"]
    assert first["principal"] == "anna" and first["threshold"] == 80 and first["volume"]["total"] >= 80
    assert first["event"] == "extraction_alert" and first["time"].startswith("20")
    assert secret not in (tmp_path / "alerts.jsonl").read_text()
    assert open_watch()._store.alerts() == [first, second]


def test_a_finding_is_told_with_its_statistics_and_nothing_of_the_queries(open_watch, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.random((32, 1, 8, 8), dtype=np.float32)
    watch = open_watch()
    for _ in range(10):
        pattern = generator.random((1, 8, 8), dtype=np.float32)
        watch.admit(Principal("mallory"), 32)
        watch.observe(Principal("mallory"), 0.9 * images + 0.1 * pattern, generator.normal(size=(32, 10)))
    watch.close()
    told = [alert for alert in alerts_in(tmp_path / "alerts.jsonl") if alert["kind"] == "offset"]
    assert len(told) == 1 and told[0]["principal"] == "mallory" and told[0]["volume"]["total"] == 320
    assert told[0]["statistic"] > told[0]["threshold"] and set(told[0]["statistics"]) == {"coverage", "offset"}
    assert all(isinstance(value, int | float) for value in told[0]["statistics"].values())


def test_an_alert_is_kept_before_it_is_told_and_not_told_again_after_a_restart(tmp_path):
    store, order = SqliteStore(tmp_path / "watch.db"), []
    log = logging.Logger("test")

    class Handler(logging.Handler):
        def emit(self, record):
            order.append(json.loads(record.getMessage()) in store.alerts())

    log.addHandler(Handler())
    alert = Alert("anna", "offset", 1.0, 0.25, {"total": 1, "today": 1})
    book = AlertBook(store, log, cool_down=60.0)
    assert book.take(alert, 1_000.0) and not book.take(alert, 1_059.0) and order == [True]
    again = AlertBook(store, log, cool_down=60.0)
    assert not again.take(alert, 1_059.0) and again.take(alert, 1_060.0) and order == [True, True]
    assert book.take(Alert("anna", "input", 1.0, 0.25, {}), 1_001.0)  # another kind
    store.close()


def test_what_a_store_cannot_take_waits_and_is_told_when_it_can(tmp_path):
    class Failing(SqliteStore):
        broken = True

        def keep_alert(self, record):
            if self.broken:
                raise StorageError("the disk is full")
            super().keep_alert(record)

        def add(self, counts):
            if self.broken:
                raise StorageError("the disk is full")
            super().add(counts)

    store, path = Failing(tmp_path / "watch.db"), tmp_path / "alerts.jsonl"
    limits = LimitSet(anonymous=Limits(images_total=10))
    watch = Watch(store, limits=limits, alerts=alert_log(path))
    assert watch.admit(ANONYMOUS, 9).allowed
    eventually(lambda: watch.metrics()["store_errors"] >= 2 and watch.metrics()["alerts_waiting"] == 1)
    assert path.read_text() == "" and not watch.admit(ANONYMOUS, 2).allowed  # still counted in memory
    store.broken = False
    eventually(lambda: watch.metrics()["alerts_waiting"] == 0)
    watch.close()
    assert len(alerts_in(path)) == 2
    again = SqliteStore(tmp_path / "watch.db")
    assert again.counts(0)["anonymous"].total == 9
    again.close()


def test_observing_never_waits_and_counts_what_it_drops(open_watch):
    watch = open_watch()
    gate = threading.Event()
    watch._observer._look = lambda *query: gate.wait()
    images = np.zeros((64, 1, 256, 256), np.float32)
    number = 3 * MAX_WAITING_BYTES // images.nbytes
    for _ in range(number):
        watch.observe(ANONYMOUS, images, np.zeros((64, 10), np.float32))
    dropped = watch.metrics()["images_not_observed"]
    assert 64 * number / 2 < dropped < 64 * number
    gate.set()


def test_a_fault_in_the_detector_is_counted_and_ends_nothing(open_watch, caplog):
    watch = open_watch()
    watch.observe(ANONYMOUS, np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 10), np.float32))
    watch.observe(ANONYMOUS, np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.float32))
    watch.observe(ANONYMOUS, np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 10), np.float32))
    watch._observer.close()
    assert watch.metrics()["detector_errors"] == 1 and watch.metrics()["images_observed"] == 12
    assert watch.admit(ANONYMOUS, 1).allowed


def test_of_a_huge_batch_a_part_is_looked_at(open_watch):
    watch = open_watch()
    watch.observe(ANONYMOUS, np.zeros((5_000, 1, 8, 8), np.float32), np.zeros((5_000, 10), np.float32))
    watch._observer.close()
    assert watch.metrics()["images_observed"] == 256
