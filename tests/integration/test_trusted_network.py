"""A network of one's own from the command line: named with --network, found in the current folder, run only then."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sdb
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.job import find_subject
from sdb.audit.plan import AuditSettings
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.config import WrapSettings
from sdb.errors import ModelError
from sdb.keys import Key, Owner
from sdb.models import ModelSpec, from_module
from sdb.models.checkpoint import load_classifier, write_tensors
from sdb.models.external import from_factory
from sdb.service.model import load_served
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.wrapping.wrap import wrap

SOURCE = """
from pathlib import Path
from torch import nn

Path("ran").touch()

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, num_classes))

def deeper(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
QUICK = WrapSettings(epochs=1, batch_size=32, learning_rate=0.01, device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits):
    """A box of a factory's network, one of a module object, a checkpoint, bare weights, keys; all by my_network.py."""
    folder = tmp_path_factory.mktemp("trusted")
    (folder / "my_network.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.path", ["", *sys.path])
        shape = digits.num_classes, digits.image_shape, digits.mean, digits.std
        known = ModelSpec("my_network:make", {}, *shape).build()
        owned = from_module(from_factory("my_network:make", 10, {}), *shape)
    owner = Owner.generate()
    key = owner.partner("p")
    owner.save(folder / "owner.json")
    key.save(folder / "key.json")
    for name, model in (("factory", known), ("module", owned)):
        wrap(model, digits, QUICK, key=key, owner=owner).save(folder / f"{name}.box")
        tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
        write_tensors(folder / f"{name}.safetensors", tensors, {"spec": model.spec.to_json()})
    torch.save({"state_dict": known.network.state_dict()}, folder / "bare.tar")
    return folder


@pytest.fixture(params=["factory.box", "module.box", "factory.safetensors", "module.safetensors"])
def file(request, place):
    (place / "ran").unlink(missing_ok=True)
    return request.param


def commands(file):
    """Every command that builds a network from a file, and whether it takes what is no box."""
    yield ["evaluate", file, "--dataset", "digits"]
    if not file.endswith(".box"):
        return
    yield ["evaluate", file, "--dataset", "digits", "--key", "key.json"]
    yield ["trace", file, "--box", file, "--owner", "owner.json", "--dataset", "digits"]
    yield ["export", file, "--to", "pt2", "--out", "out.pt2", "--overwrite"]
    yield ["key", "partner", "q", "--owner", "owner.json", "--box", file, "--out", "q.json"]
    yield ["token", "profile", file, "--dataset", "digits", "--out", "profile.json"]


def test_a_file_alone_runs_nothing_and_the_named_factory_is_found_in_the_current_folder(place, file, quick_sdb):
    for command in commands(file):
        refused = quick_sdb(*command, cwd=place)
        assert refused.returncode == 2 and "--network" in refused.stderr, (command, refused.stderr)
        assert refused.stderr.count("\n") == 1
        assert not (place / "ran").exists()
        done = quick_sdb(*command, "--network", "my_network:make", cwd=place)
        assert done.returncode == 0, (command, done.stderr)
        assert (place / "ran").exists()
        (place / "ran").unlink()
        (place / "q.json").unlink(missing_ok=True)


def test_a_wrong_factory_is_refused(place, file, quick_sdb):
    for name, says in (
        ("my_network:deeper", "holds a my_network:make" if "factory" in file else "another architecture"),
        ("nowhere.at_all:make", "cannot import" if "module" in file else "holds a my_network:make"),
    ):
        done = quick_sdb("evaluate", file, "--dataset", "digits", "--network", name, cwd=place)
        assert done.returncode == 2 and says in done.stderr, done.stderr


def test_service_and_audit_workers_get_it(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    name = "my_network:make"
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    for kind in ("factory", "module"):
        box = Box.load(f"{kind}.box", name)
        served = load_served(f"{kind}.box", partner_keys=["key.json"], network=name)
        with torch.no_grad():
            expected = box(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(served.variants[""](images), expected, rtol=1e-4, atol=1e-4)
        subject, settings = find_subject(
            Path(f"{kind}.box"),
            Path("key.json"),
            Path(f"{kind}.safetensors"),
            None,
            False,
            AuditSettings(dataset="digits", device="cpu"),
            name,
        )
        here = AuditSeed(settings.filled(), subject, 0, place / "work")
        assert here.box is not None and here.box.info == box.info
        assert here.teacher.spec.name == box.classifier.spec.name


def test_an_instance_takes_checkpoints_and_bare_weights(place, digits, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    shape = {"num_classes": 10, "image_shape": (1, 8, 8)}
    images = torch.rand(5, 1, 8, 8)
    models = [
        load_model("module.safetensors", from_factory("my_network:make", 10, {})),
        load_classifier("module.safetensors", network="my_network:make"),
    ]
    torch.testing.assert_close(models[0](images), models[1](images))
    bare = [
        load_classifier("bare.tar", network=from_factory("my_network:make", 10, {}), **shape),
        load_classifier("bare.tar", network="my_network:make", **shape),
        load_classifier("bare.tar", model_name="my_network:make", **shape),
    ]
    for each in bare:
        torch.testing.assert_close(each(images), bare[0](images))
    with pytest.raises(ModelError, match="--network"):
        load_classifier(
            "factory.safetensors", model_name="my_network:make"
        )  # an architecture's name trusts nothing


def test_bare_weights_are_evaluated_by_their_architecture_s_name(tmp_path, quick_sdb, make_net, digits):
    net = make_net(digits, num_channels=6)
    torch.save({"state_dict": net.network.state_dict()}, tmp_path / "x.tar")
    named = ["evaluate", "x.tar", "--model", "net", "--dataset", "digits"]
    done = quick_sdb(*named, "--model-args", '{"num_channels": 6}', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shape = {"num_classes": 10, "image_shape": (1, 8, 8)}
    loaded = load_classifier(tmp_path / "x.tar", model_name="net", model_args={"num_channels": 6}, **shape)
    whole = sdb.load_data("digits")
    assert (
        json.loads(done.stdout)["accuracy"]
        == evaluate(loaded, evaluation_batches(whole.test, torch.device("cpu")))["accuracy"]
    )
    for arguments, says in (
        (["evaluate", "x.tar", "--dataset", "digits"], "--model NAME"),
        (named, "another architecture"),
        ([*named, "--model-args", "num_channels=6"], "not JSON"),
        ([*named, "--model-args", "[6]"], "expected a JSON object"),
        (["evaluate", "x.tar", "--model-args", "{}"], "--model"),
        (["evaluate", "x.tar", "--model", "nett", "--dataset", "digits"], "did you mean"),
        (["evaluate", "x.tar", "--model", "net"], "--dataset"),
    ):
        refused = quick_sdb(*arguments, cwd=tmp_path)
        assert refused.returncode == 2 and says in refused.stderr, (arguments, refused.stderr)


def test_what_is_missing_or_no_key_is_said_first(tmp_path, quick_sdb, make_net, few):
    key = Key.generate()
    wrap(make_net(few), few, QUICK, key=key).save(tmp_path / "it.box")
    (tmp_path / "notes.txt").write_text("no key")
    (tmp_path / "notes.txt").chmod(0o644)
    for command in (
        ["evaluate", "it.box", "--dataset", "digits"],
        ["export", "it.box", "--to", "pt2", "--out", "x.pt2"],
    ):
        done = quick_sdb(*command, "--key", "notes.txt", cwd=tmp_path)
        assert done.returncode == 2 and "not an sdb key file" in done.stderr and "chmod" not in done.stderr
    for command in (
        ["evaluate", "gone"],
        ["serve", "gone", "--port", "0"],
        ["trace", "gone", "--box", "gone", "--owner", "x"],
    ):
        done = quick_sdb(*command, cwd=tmp_path)
        assert (
            done.returncode == 2 and "gone: no such file or folder" in done.stderr and str(tmp_path) in done.stderr
        )
        assert "a box, a run folder" in done.stderr
