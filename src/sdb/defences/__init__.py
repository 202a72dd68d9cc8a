"""Defences: ours, the paper's and the known ones, behind one interface, so that an audit compares like with like."""

from sdb.defences.boxes import Decoy, DecoyImage, Nasty, PaperBox, boxed
from sdb.defences.defence import Defence, Defended
from sdb.defences.key_switch import KeySwitch
from sdb.defences.outputs import LabelsOnly, ReverseSigmoid, Rounded, Stingy, Unprotected
from sdb.defences.redirection import GradientRedirection
from sdb.defences.sparse_teacher import AdversarialSparse
from sdb.defences.teachers import ClusterCollapse, LabelSmoothed

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
