"""Steps recorded on a GPU: the same weights as steps that are not, and nothing of it on a CPU."""

import pytest
import torch

from sdb.config import TrainSettings
from sdb.models.checkpoint import read_tensors
from sdb.runs.folder import LAST, open_run
from sdb.training import loop
from sdb.training.optimizers import make_optimizer, set_rate

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# 48 images in batches of 20: two steps an epoch, so the recording begins in the second and goes over into others.
QUICK = {"epochs": 5, "batch_size": 20, "learning_rate": 0.01, "precision": "float32"}


def trained(model, data, **changes):
    loop.train(model, data, TrainSettings(**QUICK | changes))
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


@GPU
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_recorded_step_changes_no_result(few, make_net, optimizer, schedule, monkeypatch):
    changes = {"optimizer": optimizer, "schedule": schedule}
    recorded = trained(make_net(few), few, **changes)
    monkeypatch.setattr(loop, "_can_be_graphed", lambda settings, device: False)
    torch.testing.assert_close(recorded, trained(make_net(few), few, **changes), rtol=1e-3, atol=1e-4)


@GPU
def test_a_resumed_recorded_run_ends_alike(few, make_net, tmp_path):
    long = TrainSettings(**QUICK, optimizer="adamw", schedule="constant")
    whole = trained(make_net(few), few, optimizer="adamw", schedule="constant")
    device = torch.device("cuda")
    with open_run(tmp_path / "run", {}, device) as run:
        loop.train(make_net(few), few, long.model_copy(update={"epochs": 2}), run=run)
    again = make_net(few)
    with open_run(tmp_path / "run", {}, device, resume=True) as run:
        loop.train(again, few, long, run=run)
    assert read_tensors(tmp_path / "run" / LAST)[0]
    found = {name: tensor.cpu() for name, tensor in again.state_dict().items()}
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)


def test_a_rate_that_a_recording_reads_is_written_into(few, make_net):
    optimizer = make_optimizer([make_net(few)], TrainSettings(**QUICK, optimizer="sgd"))
    (group,) = optimizer.param_groups
    group["lr"] = rate = torch.tensor(0.5)
    set_rate(optimizer, 0.25)
    assert group["lr"] is rate
    assert float(rate) == 0.25


def test_what_is_no_plain_step_on_a_gpu_is_not_recorded():
    gpu, plain = torch.device("cuda"), TrainSettings(**QUICK)
    assert loop._can_be_graphed(plain, gpu)
    assert not loop._can_be_graphed(plain, torch.device("cpu"))
    for change in ({"compile": "default"}, {"clip_norm": 1.0}, {"activation_checkpointing": True}):
        assert not loop._can_be_graphed(plain.model_copy(update=change), gpu)
