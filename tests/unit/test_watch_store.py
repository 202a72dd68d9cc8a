"""What outlives a server: sums of counts, and alerts."""

import sqlite3

import pytest

import sdb.service.watch.store as store_module
from sdb.errors import StorageError
from sdb.service.watch.counts import Count
from sdb.service.watch.store import SqliteStore, open_store


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "watch.db")
    yield store
    store.close()


def test_counts_add_up_and_a_new_day_begins_at_nothing(store):
    store.add([Count("anna", 10, 5, 5), Count("bert", 10, 1, 1)])
    store.add([Count("anna", 10, 2, 2)])
    assert store.counts(10) == {"anna": Count("anna", 10, 7, 7), "bert": Count("bert", 10, 1, 1)}
    store.add([Count("anna", 11, 4, 3)])  # one of the four was asked before midnight
    assert store.counts(11)["anna"] == Count("anna", 11, 11, 3)
    assert store.counts(11)["bert"] == Count("bert", 11, 1, 0)
    store.add([Count("anna", 10, 6, 6)])  # a server whose clock is behind
    assert store.counts(11)["anna"] == Count("anna", 11, 17, 3)


def test_two_servers_on_one_file_see_each_other(store, tmp_path):
    other = SqliteStore(tmp_path / "watch.db")
    store.add([Count("anna", 10, 5, 5)])
    other.add([Count("anna", 10, 5, 5)])
    assert store.counts(10)["anna"].total == other.counts(10)["anna"].total == 10
    other.close()


def test_alerts_come_back_in_order_and_old_ones_make_room(store, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_ALERTS", 3)
    for number in range(5):
        store.keep_alert({"number": number})
    assert [alert["number"] for alert in store.alerts()] == [2, 3, 4]


def test_a_file_that_is_none_of_ours_or_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "watch.db"
    path.write_text("something else, long enough to be looked at as a database file" * 20)
    with pytest.raises(StorageError, match="watch.db"):
        SqliteStore(path)
    with pytest.raises(StorageError, match="none/watch.db"):
        SqliteStore(tmp_path / "none" / "watch.db")


def test_a_damaged_alert_is_said(store, tmp_path):
    with sqlite3.connect(tmp_path / "watch.db") as connection:
        connection.execute("INSERT INTO alerts (record) VALUES ('{')")
    with pytest.raises(StorageError):
        store.alerts()


def test_a_failed_addition_adds_nothing_and_the_store_goes_on(store):
    with pytest.raises(StorageError):
        store.add([Count("anna", 10, 1, 1), Count("bert", 10, None, 1)])
    assert store.counts(10) == {}
    store.add([Count("anna", 10, 1, 1)])
    assert store.counts(10)["anna"].total == 1


def test_without_a_place_counts_live_in_memory():
    store = open_store(None)
    store.add([Count("anna", 10, 1, 1)])
    assert store.counts(10)["anna"].total == 1
    store.close()
    with pytest.raises(StorageError):
        store.counts(10)


@pytest.mark.parametrize(
    "place", ["postgres://me:secret@host/0", "unix://:secret@/redis.sock", "Redis://:secret@host/0"]
)
def test_a_url_that_is_no_redis_is_no_file_and_keeps_its_password(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="redis://") as error:
        open_store(place)
    assert place.partition(":")[0] in str(error.value)
    assert "secret" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
