"""Attacks: what somebody without the key may try. An attack is a small frozen set of parameters and one `run`.

`victim`: the only thing an attack sees of what it attacks. `means`: what it has beside that. `attack`: what every
attack is. All others hold attacks; `ATTACKS` is the list that audits go through. How to add one:
docs/adding-an-attack.md.
"""

from sdb.attacks.attack import Attack
from sdb.attacks.averaging import AugmentedAverage, BlendAverage, NoiseAverage
from sdb.attacks.batch_norm import BatchNormAgain
from sdb.attacks.collusion import TwoBoxes
from sdb.attacks.data_free import DataFree
from sdb.attacks.decoys_removed import DecoysRemoved, Deviations
from sdb.attacks.distil import Distil, DistilUnlabelled, Labels, TunedDistil
from sdb.attacks.keys_tried import KeyByGradients, KeyByQueries, LeakedPart, RandomKeys
from sdb.attacks.knockoff import KnockoffAdaptive, KnockoffRandom
from sdb.attacks.random_patterns import RandomPatterns
from sdb.attacks.sanitise import Averager, AveragerUnlabelled, Clip, SecondPeakRemoved, TargetAgainstRest, TopKOnly
from sdb.attacks.shadow import ShadowByClass, ShadowRecovery
from sdb.attacks.skeptical import Skeptical
from sdb.attacks.white_box import Features, FineTuned, FreshHead, FreshHeadLabels, Pruned

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Labels(),
        Distil(),
        DistilUnlabelled(),
        TunedDistil(),
        TopKOnly(),
        Clip(),
        SecondPeakRemoved(),
        TargetAgainstRest(),
        Averager(),
        AveragerUnlabelled(),
        Skeptical(),
        AugmentedAverage(),
        NoiseAverage(),
        BlendAverage(),
        DecoysRemoved(),
        Deviations(),
        ShadowRecovery(),
        ShadowByClass(),
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
        FreshHeadLabels(),
        Features(),
    )
}
