"""Attacks: what somebody without the key may try. An attack is a small frozen set of parameters and one `run`.

`victim`: the only thing an attack sees of what it attacks. `attacker`: what it has beside that. `attack`: what every
attack is. All others hold attacks; `ATTACKS` is the list that audits go through. How to add one:
docs/adding-an-attack.md.
"""

from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.averaging import AugmentedAverage, BlendAverage, NoiseAverage
from sdb.audit.attacks.batch_norm import BatchNormAgain
from sdb.audit.attacks.collusion import TwoBoxes
from sdb.audit.attacks.data_free import DataFree
from sdb.audit.attacks.decoys_removed import DecoysRemoved, Deviations
from sdb.audit.attacks.distil import UNLABELLED, Distil, Labels, TunedDistil
from sdb.audit.attacks.edges import EdgeWalking, MarginQueries
from sdb.audit.attacks.gradient_aligned import GradientAligned
from sdb.audit.attacks.keys_tried import KeyByGradients, KeyByQueries, LeakedPart, RandomKeys
from sdb.audit.attacks.knockoff import KnockoffAdaptive, KnockoffRandom
from sdb.audit.attacks.level_thieves import BY_FILTER, BY_TARGETS, LevelThief
from sdb.audit.attacks.random_patterns import RandomPatterns
from sdb.audit.attacks.sanitise import (
    UNLABELLED_AVERAGER,
    Averager,
    Clip,
    SecondPeakRemoved,
    TargetAgainstRest,
    TopKOnly,
)
from sdb.audit.attacks.semi_supervised import FixMatch
from sdb.audit.attacks.shadow import BY_CLASS, ShadowRecovery
from sdb.audit.attacks.skeptical import Skeptical
from sdb.audit.attacks.white_box import FROM_LABELS, Features, FineTuned, FreshHead, Pruned

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Labels(),
        Distil(),
        UNLABELLED,
        TunedDistil(),
        LevelThief(),
        BY_FILTER,
        BY_TARGETS,
        EdgeWalking(),
        MarginQueries(),
        GradientAligned(),
        FixMatch(),
        TopKOnly(),
        Clip(),
        SecondPeakRemoved(),
        TargetAgainstRest(),
        Averager(),
        UNLABELLED_AVERAGER,
        Skeptical(),
        AugmentedAverage(),
        NoiseAverage(),
        BlendAverage(),
        DecoysRemoved(),
        Deviations(),
        ShadowRecovery(),
        BY_CLASS,
        TwoBoxes(),
        RandomKeys(),
        KeyByQueries(),
        KeyByGradients(),
        LeakedPart(),
        KnockoffRandom(),
        KnockoffAdaptive(),
        RandomPatterns(),
        DataFree(),
        BatchNormAgain(),
        FineTuned(),
        Pruned(),
        FreshHead(),
        FROM_LABELS,
        Features(),
    )
}
