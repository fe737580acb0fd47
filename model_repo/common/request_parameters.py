"""Refuses request parameters that nothing reads.

Triton's generate endpoint turns every key of the JSON body that is not an input into a parameter
of the request, so a misspelt input would be ignored without a word. An ensemble passes them on to
its steps.
"""

from __future__ import annotations

import json
from typing import Any

# Triton's own; it leaves them among the parameters or takes them out, depending on the protocol.
_TRITONS = frozenset(
    (
        "binary_data_output",
        "id",
        "priority",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "timeout",
    )
)
_TRITONS_PREFIX = "triton_"


def unknown_parameters(request: Any) -> str | None:
    """Why a ``pb_utils.InferenceRequest`` is refused, or None if it is not."""
    names = json.loads(request.parameters() or "{}")
    unknown = sorted(
        name for name in names if name not in _TRITONS and not name.startswith(_TRITONS_PREFIX)
    )
    if not unknown:
        return None
    return f"invalid parameter {', '.join(unknown)}: there is no such input; check its spelling"
