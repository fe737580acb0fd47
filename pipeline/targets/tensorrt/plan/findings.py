"""One thing the pre-flight has to say about a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """A consequence of the recipe that ``trtllm-build`` or the runtime would not explain.

    Attributes:
        severity: ``error`` cannot work; ``warning`` works otherwise than asked; ``note`` is good
            to know.
        key: The recipe's key it is about, dotted.
        what: What happens, as a sentence without its full stop.
        why: The cause.
        remedy: What to do about it.
    """

    severity: Severity
    key: str
    what: str
    why: str
    remedy: str
