"""An audit of what a caller holds: any network, nothing written, the same findings as from files."""

import builtins
import copy
import os

import pytest
import torch
from torch import nn

import sdb
from sdb.audit.job import audit_job, find_subject
from sdb.audit.plan import AuditSettings
from sdb.config import WrapSettings
from sdb.errors import ModelError
from sdb.keys import Owner
from sdb.models import MODULE
from sdb.report.audit_page import render
from sdb.report.claim import read_claim
from sdb.runs.tasks import Where
from sdb.wrapping.wrap import wrap

OWNER = Owner(bytes(range(32)))
KEY = OWNER.partner("hospital")
WRAP = WrapSettings(epochs=2, batch_size=16, learning_rate=0.003, optimizer="adam", device="cpu")
SMALL = {
    "attacks": ("labels", "features"),
    "defences": ("gradient_redirection",),
    "epochs": 2,
    "maker_epochs": 2,
    "views": 1,
    "seeds": 1,
    "pairs": 3,
    "batch_size": 16,
    "device": "cpu",
}


class Own(nn.Module):
    """Somebody's network; with `tokens` it has parameters that no layer draws again."""

    def __init__(self, tokens=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)
        self.tokens = nn.Parameter(torch.zeros(6)) if tokens else None

    def forward(self, images):
        seen = self.norm(self.conv(images)).relu().amax(dim=(2, 3))
        return self.head(seen if self.tokens is None else seen + self.tokens)


@pytest.fixture
def read_only(monkeypatch):
    """A process in which nothing may be written, but by torch's own cache."""
    opened, low, made = builtins.open, os.open, os.mkdir

    def check(path, writes):
        assert not writes or path == os.devnull or "torchinductor" in str(path), f"{path} is written"

    def watched(file, mode="r", *rest, **named):
        check(file, set(mode) - set("rbt"))
        return opened(file, mode, *rest, **named)

    def watched_low(path, flags, *rest, **named):
        check(path, flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return low(path, flags, *rest, **named)

    def watched_mkdir(path, *rest, **named):
        check(path, True)
        return made(path, *rest, **named)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr("io.open", watched)
    monkeypatch.setattr("os.open", watched_low)
    monkeypatch.setattr("os.mkdir", watched_mkdir)


def states(*modules):
    return [copy.deepcopy(module.state_dict()) for module in modules]


def same(before, *modules):
    return all(
        torch.equal(value, module.state_dict()[name])
        for state, module in zip(before, modules, strict=True)
        for name, value in state.items()
    )


def findings(claim):
    """What must not depend on how an audit was run."""
    kept = ("references", "cells", "controls", "student", "victim", "skipped", "unlock")

    def strip(value):
        if isinstance(value, dict):
            return {name: strip(each) for name, each in value.items() if name != "seconds"}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return strip({name: claim[name] for name in kept})


@pytest.mark.usefixtures("read_only")
def test_a_network_of_ones_own_is_audited_and_nothing_is_written(few):
    torch.manual_seed(0)
    net = Own()
    box = wrap(net, few, WRAP, key=KEY, mean=(0.3,), std=(0.4,))
    before = states(box, net)
    claim = sdb.audit(box, few, key=KEY, teacher=net, settings=AuditSettings(**SMALL))
    assert same(before, box, net)
    assert net.training
    found = read_claim(claim)
    assert [row.name for row in found.defences] == ["box", "none", "gradient_redirection"]
    assert {cell.status for cell in found.cells} == {"done"}
    assert found.skipped == {}
    assert found.student.model == found.victim.model == MODULE
    assert found.student.parameters == sum(each.numel() for each in net.parameters())
    assert found.unlock


def test_a_network_that_nobody_can_make_afresh_is_audited_with_other_students_and_fewer_defences(few):
    torch.manual_seed(0)
    net = Own(tokens=True)
    box = wrap(net, few, WRAP, key=KEY)
    chosen = SMALL | {"defences": ("gradient_redirection", "stingy"), "attacks": ("labels",)}
    found = read_claim(sdb.audit(box, few, teacher=net, settings=AuditSettings(**chosen)))
    assert [row.name for row in found.defences] == ["box", "none", "stingy"]
    assert list(found.skipped) == ["gradient_redirection"]
    assert "tokens" in found.skipped["gradient_redirection"]
    assert found.student.model == "net"
    assert "tokens" in found.student.note
    page = render(found)
    assert "Left out: gradient redirection" in page
    assert page.count("tokens") >= 2
    with pytest.raises(ModelError, match="reset_parameters"):
        sdb.audit(box, few, teacher=net, settings=AuditSettings(**chosen, student_model=MODULE, student_args={}))


def test_objects_files_and_a_kept_folder_give_the_same_findings(few, make_net, tmp_path):
    teacher = make_net(few, seed=3, num_channels=6)
    box = wrap(teacher, few, WRAP, key=KEY)
    settings = AuditSettings(**SMALL)
    held = sdb.audit(box, few, key=KEY, teacher=teacher, settings=settings)
    kept = sdb.audit(box, few, key=KEY, teacher=teacher, settings=settings, out=tmp_path / "kept")
    assert findings(kept) == findings(held)
    assert (tmp_path / "kept" / "report.html").exists()
    box.save(tmp_path / "box")
    KEY.save(tmp_path / "key.json")
    subject, settings = find_subject(tmp_path / "box", tmp_path / "key.json", None, None, False, settings)
    read = audit_job(
        tmp_path / "read",
        settings,
        sdb.audit.audit_seed.Subject(subject.box, subject.key, teacher, files=None),
        where=Where(),
        resume=False,
        overwrite=False,
        on_progress=lambda *told: None,
        data=few,
    )
    assert findings(read) == findings(held)


def test_a_kept_audit_of_a_network_of_ones_own_trains_its_teacher_and_reads_it_again(few, tmp_path):
    box = wrap(Own(), few, WRAP, key=KEY)
    chosen = AuditSettings(**SMALL | {"attacks": ("labels",), "defences": ("decoy",)})
    kept = sdb.audit(box, few, settings=chosen, out=tmp_path / "kept")
    assert findings(kept) == findings(sdb.audit(box, few, settings=chosen))
