"""The audit: attacks, defences, and what they show of a box. How it is drawn and worded is in report.

`sdb.audit` is this package and, called, the audit itself: importing any part of it binds the package to the name.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _Audit(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """See `sdb.audit.job.audit`."""
        from sdb.audit.job import audit

        return audit(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        """As `help` and editors show it."""
        from sdb.audit.job import audit

        return inspect.signature(audit)


sys.modules[__name__].__class__ = _Audit
