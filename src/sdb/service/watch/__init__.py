"""Who asks a served box, how much, and whether it looks like an extraction (OWASP AISVS C11.5; docs/aisvs.md)."""

from sdb.service.watch.accounts import Admission
from sdb.service.watch.detector import fit_profile
from sdb.service.watch.limits import Limits, LimitSet
from sdb.service.watch.profile import Profile
from sdb.service.watch.tokens import ANONYMOUS, Principal, TokenFile
from sdb.service.watch.watcher import Watch

__all__ = [
    "ANONYMOUS",
    "Admission",
    "LimitSet",
    "Limits",
    "Principal",
    "Profile",
    "TokenFile",
    "Watch",
    "fit_profile",
]
