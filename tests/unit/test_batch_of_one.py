"""One image at a time: refused before anything is written where a network cannot learn from it, else trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.models import from_module
from sdb.training.loop import check_batches, train
from sdb.wrapping.wrap import wrap

FIT = {"epochs": 1, "device": "cpu", "learning_rate": 1e-3, "optimizer": "adam"}


def classifier(data, *norm):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *norm, nn.ReLU(), nn.Linear(8, 10))
    return from_module(layers, 10, data.image_shape, data.mean, data.std)


def first(data, count):
    return replace(data, train=data.train.take(np.arange(count)))


@pytest.mark.parametrize(
    ("count", "sizes", "alone"),
    [
        (48, {"batch_size": 1}, "it is 1"),
        (48, {"batch_size": 4, "accumulation_steps": 4}, "cut into 4 parts"),
        (1, {"batch_size": 16}, "there is 1 training image"),
        (48, {"batch_size": 4, "accumulation_steps": 2}, None),
        (17, {"batch_size": 16}, None),  # the last one is left out
        (3, {"batch_size": 2}, None),
        (2, {"batch_size": 16}, None),
    ],
)
def test_lone_images(few, make_net, count, sizes, alone):
    """Of networks with batch norm over vectors, in all three commands; one without it learns from one."""
    data, settings = first(few, count), FIT | sizes
    for norm in ((nn.BatchNorm1d(8),), ()):
        model = classifier(data, *norm)
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        key = Key.generate()
        runs = (
            lambda model=model: train(model, data, TrainSettings(**settings)),
            lambda model=model: distill(make_net(data), model, data, DistillSettings(**settings)),
            lambda model=model: wrap(model, data, WrapSettings(**settings), key=key),
        )
        for run in runs:
            if alone and norm:
                with pytest.raises(
                    ConfigError, match=rf"batch_size: .*{alone}.*Expected more than 1 value"
                ) as refused:
                    run()
                assert "\n" not in str(refused.value)
                assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
            elif run is not runs[-1] or norm:  # a network without norms has nothing to keep private
                run()


def test_the_check_changes_nothing(few, make_net):
    model = make_net(few).eval()
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ConfigError):
        check_batches(model, few, TrainSettings(**FIT, batch_size=1))
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"batch_size": 3, "accumulation_steps": 3}])
def test_nothing_is_written(tmp_path, sizes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "params.json").write_text(
        json.dumps({"model_name": "net", "num_channels": 4, "epochs": 1, **sizes})
    )
    done = subprocess.run(
        [sys.executable, "-m", "sdb", "train", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sdb: batch_size: this network does not learn from a lone image")
    assert len(done.stderr.splitlines()) == 1
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["params.json"]


def test_processes_share_a_batch(few, make_net, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="cut into 4 parts"):
        check_batches(make_net(few), few, TrainSettings(**FIT, batch_size=4))
    check_batches(make_net(few), few, TrainSettings(**FIT, batch_size=8))
    with pytest.raises(ConfigError, match="does not divide"):
        check_batches(make_net(few), few, TrainSettings(**FIT, batch_size=6))
