"""The page of the checks is the checks'."""

from __future__ import annotations

import re

from pipeline.verify import CHECKS
from pipeline.verify.listing import listed, page

from ..conftest import PROJECT


def test_the_page_is_what_the_checks_say() -> None:
    assert (PROJECT / "docs" / "conformance.md").read_text(encoding="utf-8") == page()


def test_each_check_has_one_row_with_what_is_asked_and_what_must_be() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page(), re.M)
    assert [name for name, _, _ in rows] == sorted(CHECKS, key=lambda n: CHECKS[n].thorough)
    assert all(len(asked) > 10 and len(must) > 10 for _, asked, must in rows)


def test_the_list_says_the_same() -> None:
    assert [row["name"] for row in listed()] == list(CHECKS)
    assert all(row["asks"] and row["proves"] for row in listed())
