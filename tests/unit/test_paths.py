"""Every public function that takes a path takes text as well."""

import inspect
import json

import pytest
import torch

import sdb
from sdb import config
from sdb.errors import ConfigError
from sdb.export import export
from sdb.report.audit_page import write_audit_report
from sdb.report.files import load_claim
from sdb.report.page import write_report
from sdb.runs.folder import open_run


def asks_for_a_path_object(function):
    hints = [str(each.annotation) for each in inspect.signature(function).parameters.values()]
    return [hint for hint in hints if "Path" in hint and "str" not in hint]


def test_no_public_function_asks_for_a_path_object():
    functions = [export, config.load, load_claim, write_report, write_audit_report, open_run]
    for name in sdb.__all__:
        value = getattr(sdb, name)
        own = [each for kind, each in vars(value).items() if kind == "__init__" or not kind.startswith("_")]
        methods = [getattr(each, "__func__", each) for each in own] if inspect.isclass(value) else [value]
        functions += [each for each in methods if inspect.isfunction(each)]
    assert len(functions) > 30
    for function in functions:
        assert not asks_for_a_path_object(function), f"{function.__qualname__}: Path | str"
    assert asks_for_a_path_object(config.read_json)  # the check finds what it looks for


def test_text_does_what_a_path_does(tmp_path, few, make_net, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_net(few)
    with open_run("run", {}, torch.device("cpu")) as run:
        sdb.train(model, few, sdb.TrainSettings(epochs=1, batch_size=16, device="cpu"), run=run)
    images = torch.rand(2, *few.image_shape)
    for name in ("run", "run/best.safetensors"):
        torch.testing.assert_close(sdb.load_classifier(name)(images), model(images))
    settings = sdb.WrapSettings(epochs=1, batch_size=16, device="cpu")
    key = sdb.Key.generate()
    sdb.wrap(model, few, settings, key=key).save("it.box")
    key.save("key.json")
    assert sdb.Key.load("key.json").id == key.id
    export(sdb.Box.load("it.box"), "network.pt2", "pt2")
    assert (tmp_path / "network.pt2").is_file()
    (tmp_path / "params.json").write_text(json.dumps({"dataset": "digits", "model_name": "net"}))
    assert config.load(".", "train").dataset == "digits"
    with pytest.raises(ConfigError, match="claim"):
        load_claim("no.json")
