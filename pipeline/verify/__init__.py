"""Conformance of a running server, whoever started it.

:func:`run_conformance` needs nothing but an address and the client.
"""

from pipeline.verify.catalogue import CHECKS
from pipeline.verify.check import Plan
from pipeline.verify.output import print_report, to_json, to_junit
from pipeline.verify.report import CheckResult, Report, raise_for_failures
from pipeline.verify.run import run_conformance
from pipeline.verify.selection import chosen_checks

__all__ = [
    "CHECKS",
    "CheckResult",
    "Plan",
    "Report",
    "chosen_checks",
    "print_report",
    "raise_for_failures",
    "run_conformance",
    "to_json",
    "to_junit",
]
