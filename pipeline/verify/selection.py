"""Which checks run."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from pipeline.errors import UsageError
from pipeline.verify.catalogue import CHECKS
from pipeline.verify.check import Check


def chosen_checks(
    only: Collection[str] = (), skip: Collection[str] = (), *, thorough: bool = False
) -> tuple[Check, ...]:
    """Selects the checks to run, in their order.

    Args:
        only: Names of the checks to run; none is all, but for the thorough ones.
        skip: Names of the checks to leave out.
        thorough: Whether the thorough ones run too where none is named.

    Raises:
        UsageError: There is no check of a name, or none is left.
    """
    for name in (*only, *skip):
        if name not in CHECKS:
            raise UsageError(f"there is no check {name}", fix=_suggestion(name, CHECKS))
    wanted = only or [name for name, check in CHECKS.items() if thorough or not check.thorough]
    names = [name for name in CHECKS if name in wanted and name not in skip]
    if not names:
        raise UsageError(
            "no check is left to run", fix="Name one that is not skipped as well, or skip fewer"
        )
    return tuple(CHECKS[name] for name in names)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Checks: {', '.join(known)}"
