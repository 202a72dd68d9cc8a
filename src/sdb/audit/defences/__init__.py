"""Defences: ours, the paper's and the known ones, behind one interface, so that an audit compares like with like."""

from sdb.audit.defences.boxes import Decoy, DecoyImage, Nasty, PaperBox, boxed
from sdb.audit.defences.defence import Defence, Defended
from sdb.audit.defences.key_switch import KeySwitch
from sdb.audit.defences.outputs import LabelsOnly, ReverseSigmoid, Rounded, Stingy, Unprotected
from sdb.audit.defences.redirection import GradientRedirection
from sdb.audit.defences.sparse_teacher import AdversarialSparse
from sdb.audit.defences.teachers import ClusterCollapse, LabelSmoothed

__all__ = ["DEFENCES", "Defence", "Defended", "boxed"]

DEFENCES: dict[str, Defence] = {
    defence.name: defence
    for defence in (
        Unprotected(),
        LabelsOnly(),
        Rounded(),
        ReverseSigmoid(),
        Stingy(),
        GradientRedirection(),
        LabelSmoothed(),
        ClusterCollapse(),
        Nasty(),
        AdversarialSparse(),
        PaperBox(),
        Decoy(),
        DecoyImage(),
        KeySwitch(),
    )
}
