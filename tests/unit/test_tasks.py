"""The engine for many pieces of work: order, errors, other processes, and what a node of a cluster must be like."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdb.errors import ConfigError, DataError, MissingExtraError, TrainingError
from sdb.runs.tasks import Where, Work, run
from sdb.runs.tasks.cluster import Site, connected, places_of, reach, same_site, settle, without_gpu
from sdb.runs.tasks.work import attempt
from sdb.runtime import environment

HERE = Where()


def quiet(done, total, name):
    pass


def chain(calls, **needs):
    """Work that writes down its name."""
    return [Work(name, calls.append, (name,), tuple(needed)) for name, needed in needs.items()]


# --- order -----------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw):
    """Works without circles, listed in any order."""
    count = draw(st.integers(1, 12))
    needs = {i: draw(st.sets(st.integers(0, i - 1))) if i else set() for i in range(count)}
    order = draw(st.permutations(range(count)))
    return {str(i): [str(need) for need in sorted(needs[i])] for i in order}


@given(graphs())
def test_everything_is_done_once_and_after_what_it_needs(needs):
    calls, told = [], []
    run(chain(calls, **needs), HERE, lambda *each: told.append(each))
    assert sorted(calls) == sorted(needs)
    for name, needed in needs.items():
        assert all(calls.index(need) < calls.index(name) for need in needed)
    assert told == [(number + 1, len(needs), name) for number, name in enumerate(calls)]


@given(graphs())
def test_what_is_ready_is_begun_in_the_given_order(needs):
    calls = []
    run(chain(calls, **needs), HERE, quiet)
    done, expected = set(), []
    while len(expected) < len(needs):
        expected.append(next(n for n in needs if n not in done and done.issuperset(needs[n])))
        done.add(expected[-1])
    assert calls == expected


@given(graphs(), st.data())
def test_after_an_error_all_that_does_not_need_it_is_still_done(needs, data):
    bad = data.draw(st.sampled_from(list(needs)))
    lost = {bad}
    while more := {n for n in needs if n not in lost and lost & set(needs[n])}:
        lost |= more
    calls = []

    def do(name):
        if name == bad:
            raise DataError("is spoilt")
        calls.append(name)

    works = [Work(name, do, (name,), tuple(needed)) for name, needed in needs.items()]
    with pytest.raises(TrainingError, match=f"1 of {len(needs)} failed: {bad}: is spoilt") as caught:
        run(works, HERE, quiet, keep_going=True)
    assert set(calls) == set(needs) - lost
    said = str(caught.value).partition("since they need what failed: ")[2].partition(";")[0]
    assert set(said.split(", ")) - {""} == lost - {bad}


def test_what_is_not_in_the_list_is_finished():
    calls = []
    run(chain(calls, b=["a"]), HERE, quiet)
    assert calls == ["b"]


def test_nothing_to_do_begins_nothing():
    assert run([], Where(3), quiet) == 3


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ({"a": "a"}, "a <- a"),
        ({"a": "b", "b": "a"}, "a <- b <- a|b <- a <- b"),
        ({"c": "", "a": "b", "b": "a"}, "<-"),
    ],
)
def test_a_circle_is_refused_before_anything_is_done(needs, said):
    calls = []
    with pytest.raises(ConfigError, match=said):
        run(chain(calls, **needs), HERE, quiet)
    assert calls == []


def test_two_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="'a' is the name of two"):
        run([*chain([], a=""), *chain([], a="")], HERE, quiet)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"workers": 0}, "workers: 0"), ({"task_cpus": 0}, "task_cpus: 0"), ({"task_gpus": 1.5}, "task_gpus: 1.5")],
)
def test_a_place_that_cannot_be_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        Where(**values)


def test_an_error_stops_all_at_once_and_is_raised_as_it_is():
    calls = []

    def spoilt():
        raise DataError("spoilt")

    with pytest.raises(DataError, match="^spoilt$"):
        run([*chain(calls, a=""), Work("bad", spoilt, ()), *chain(calls, b="")], HERE, quiet)
    assert calls == ["a"]


def test_work_here_has_one_thread_and_the_threads_come_back():
    torch.set_num_threads(2)
    try:
        seen = []
        run([Work("a", lambda: seen.append(torch.get_num_threads()), ())], HERE, quiet)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


# --- processes -------------------------------------------------------------------------------------------------------

WORKING = '''
import json, os, time
from pathlib import Path

import torch

from sdb.errors import MissingExtraError


def meet(folder, name, other):
    """Ends when another process has begun."""
    (folder / name).write_text(json.dumps([os.getpid(), torch.get_num_threads()]))
    deadline = time.monotonic() + 60
    while not (folder / other).exists():
        if time.monotonic() > deadline:
            raise RuntimeError("nobody came")
        time.sleep(0.005)


def fail(package):
    raise MissingExtraError(package, "extra", "this")


def bug():
    raise ZeroDivisionError("a bug")


def die():
    os._exit(3)
'''


@pytest.fixture
def working(tmp_path, monkeypatch):
    """A module whose functions processes can import."""
    (tmp_path / "working_for_tests.py").write_text(WORKING)
    monkeypatch.syspath_prepend(tmp_path)
    import working_for_tests

    return working_for_tests


def test_two_processes_work_at_once_with_one_thread_each(working, tmp_path):
    first = Work("first", working.meet, (tmp_path, "a", "b"))
    told = []
    places = run([first, Work("second", working.meet, (tmp_path, "b", "a"))], Where(2), lambda *e: told.append(e))
    (one, threads), (other, more) = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert len({one, other, os.getpid()}) == 3
    assert (threads, more, places) == (1, 1, 2)
    assert [each[:2] for each in told] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("fail", ("tool",), MissingExtraError, "this needs tool, which is not installed"),
        ("bug", (), ZeroDivisionError, "a bug"),
        ("die", (), TrainingError, "a worker process ended.*fewer --workers"),
    ],
)
def test_what_goes_wrong_in_a_process_is_said_here(working, name, arguments, error, said):
    with pytest.raises(error, match=said):
        run([Work("bad", getattr(working, name), arguments)], Where(2), quiet)


def test_an_error_that_cannot_be_pickled_comes_back_as_itself():
    def fail():
        raise MissingExtraError("optuna", "tune", "searching")

    error = attempt(fail, ()).error()
    assert type(error) is MissingExtraError
    assert str(error) == str(MissingExtraError("optuna", "tune", "searching"))


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["here", "http://a:1/", "localhost:", "a:0", ":6379", "localhost:99999"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="is no address"):
        Where(cluster=address)


def test_an_address_where_nobody_is_is_said_at_once():
    with pytest.raises(ConfigError, match=r"nobody answers at '127.0.0.1:1' .*is it up"):
        reach("127.0.0.1:1")


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"safe-distillation-box\[ray\]"), connected("auto"):
        pass


@pytest.mark.parametrize(
    ("has", "asks", "places"),
    [
        ({"CPU": 4.0}, {}, 4),
        ({"CPU": 4.0}, {"task_cpus": 3}, 1),
        ({"CPU": 0.3}, {"task_cpus": 0.1}, 3),
        ({"CPU": 8.0, "GPU": 1.0}, {"task_gpus": 0.25}, 4),
        ({"CPU": 8.0}, {"task_gpus": 0.25}, 0),
        ({"GPU": 8.0}, {}, 0),
    ],
)
def test_how_much_a_node_can_do(has, asks, places):
    assert places_of(has, Where(**asks)) == places


def test_a_node_that_is_alike_and_sees_the_folders_is_welcome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDB_DATA", "/somewhere")
    with same_site([tmp_path / "a", tmp_path / "b"]) as site:
        os.chdir("/")
        monkeypatch.delenv("SDB_DATA")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        settle(site)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        settle(without_gpu(site))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert Path.cwd() == tmp_path
        assert os.environ["SDB_DATA"] == "/somewhere"
        assert len(list(tmp_path.rglob(".sdb-cluster-*"))) == 2
    assert not list(tmp_path.rglob(".sdb-cluster-*"))


def versions(**changes):
    code = environment() | changes
    return tuple((name, code[name]) for name in ("sdb", "commit", "torch"))


def test_a_node_with_another_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has sdb .*\(here 0.0.1\): install the same there"):
        settle(Site(versions(sdb="0.0.1"), str(tmp_path)))


def test_a_node_that_does_not_see_the_folder_is_refused(tmp_path):
    (tmp_path / "seen").write_text("another")
    for name in ("seen", "unseen"):
        with pytest.raises(ConfigError, match=f"does not see {tmp_path}: a shared folder under the same path"):
            settle(Site(versions(), str(tmp_path), ((str(tmp_path / name), "token"),)))
    with pytest.raises(ConfigError, match="has no /nowhere"):
        settle(Site(versions(), "/nowhere"))
