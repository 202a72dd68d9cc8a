"""Attacks: what somebody without the key may try. An attack is a small frozen set of parameters and one `run`.

`victim`: the only thing an attack sees of what it attacks. `means`: what it has beside that. `attack`: what every
attack is. All others hold attacks; `ATTACKS` is the list that audits go through. How to add one:
docs/adding-an-attack.md.
"""

from sdb.attacks.attack import Attack
from sdb.attacks.distil import Distil, DistilUnlabelled, Labels, TunedDistil

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Labels(),
        Distil(),
        DistilUnlabelled(),
        TunedDistil(),
    )
}
