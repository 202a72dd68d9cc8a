"""Who hears of training: nobody unless a person looks, a function of the caller's, or what the commands show."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

import sdb
from sdb.training.progress import ShowProgress, as_progress, in_notebook, watched

QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "device": "cpu"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def works(few, make_net):
    """Each of the three ways to train, as functions of `progress=`."""
    teacher, key = make_net(few), sdb.Key.generate()
    student = sdb.DistillSettings(**QUICK)
    return {
        "train": lambda **given: sdb.train(make_net(few), few, sdb.TrainSettings(**QUICK), **given),
        "wrap": lambda **given: sdb.wrap(teacher, few, sdb.WrapSettings(**QUICK), key=key, **given),
        "distill": lambda **given: sdb.distill(teacher, make_net(few, seed=1), few, student, **given),
    }


@pytest.mark.parametrize("way", ["train", "wrap", "distill"])
def test_a_function_hears_each_epoch_a_terminal_gets_a_bar_and_nothing_else_is_written(
    few, make_net, way, monkeypatch
):
    work, heard = works(few, make_net)[way], []
    work(progress=heard.append)
    assert [record["epoch"] for record in heard] == [1, 2]
    assert all("validation" in record for record in heard)
    for stream, given, shown in (
        (Terminal(), {}, True),
        (Terminal(), {"progress": True}, True),
        (Terminal(), {"progress": False}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"progress": True}, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        work(**given)
        assert (f"{way} " in stream.getvalue() and "epoch 2/2" in stream.getvalue()) is shown


def test_what_the_caller_raises_ends_the_bar(few, make_net, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = ShowProgress("train")

    class Stops(ShowProgress):
        def epoch(self, record):
            raise KeyboardInterrupt

    bar = Stops("train")
    with pytest.raises(KeyboardInterrupt):
        works(few, make_net)["train"](progress=bar)
    assert bar._bar is None


def test_a_notebook_is_told_by_its_shell(monkeypatch):
    assert not in_notebook()
    for name, notebook in (("ZMQInteractiveShell", True), ("TerminalInteractiveShell", False)):
        shell = type(name, (), {})()
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is notebook
        assert watched(io.StringIO()) is notebook
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert as_progress(None, "x") is as_progress(False, "x") is as_progress(True, "x") is None


def test_the_time_left_of_tasks_follows_from_what_they_cost(capsys, monkeypatch):
    """The slow start does not make the rest look slow."""
    from sdb.training import progress

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    shown = progress.ShowTasks("audit", {"teacher": 8.0, "a": 1.0, "b": 1.0})
    shown.on_progress(1, 3, "teacher")
    shown.on_progress(2, 3, "a")
    shown.on_progress(3, 3, "b")
    lines = capsys.readouterr().err.splitlines()
    left = [float(re.search(r"([\d.]+) s left", line)[1]) for line in lines]
    spent = [float(re.search(r"  (\d+) s,", line)[1]) for line in lines]
    assert left[0] == pytest.approx(spent[0] / 8 * 2, abs=3)
    assert left[-1] == 0
