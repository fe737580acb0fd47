"""What the pages say of the code is there: files, and the names that are given with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.triton.contract import BLS, MODELS
from trtllm_client._request import GUIDE_TYPES

from ..conftest import PROJECT
from ..pages import PAGES

# A file by its path from the root, and perhaps names in it.
NAMED = re.compile(r"`([\w.-]+/[\w./-]+\.\w+)`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?")
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def life_of_a_request() -> str:
    text = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return text.partition("## Life of a request")[2].partition("\n## ")[0]


def house() -> list[str]:
    """The first cell of each row of the house's table."""
    text = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## The house")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`.*?) \|", table, re.M)


def missing(text: str) -> list[str]:
    """The files and names of a page that are not there."""
    found = []
    for path, names in NAMED.findall(text):
        file = PROJECT / path
        if not file.is_file():
            found.append(path)
            continue
        code = file.read_text(encoding="utf-8")
        found += [
            f"{path}: {name}"
            for name in re.findall(r"`(\w+)`", names)
            if not re.search(rf"\b(?:def|class) {name}\b|^{name}\b", code, re.M)
        ]
    return found


def test_a_name_that_is_gone_is_found() -> None:
    text = "`pipeline/errors.py` (`UsageError`, `NoError`), `pipeline/none.py`"
    assert missing(text) == ["pipeline/errors.py: NoError", "pipeline/none.py"]


def test_the_life_of_a_request_names_what_is_there() -> None:
    text = life_of_a_request()
    steps = re.findall(r"^(\d+)\. ", text, re.M)
    assert [int(step) for step in steps] == list(range(1, 11))
    assert len(NAMED.findall(text)) > 20
    assert missing(text) == []


def test_each_row_of_the_house_names_what_is_there() -> None:
    rows = house()
    assert len(rows) > 20
    named = set()
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        # The first is named from the root, the others beside it.
        named |= {PROJECT / first, *((PROJECT / first).parent / other for other in others)}
    assert [path for path in named if not path.exists()] == []
    package = PROJECT / "pipeline"
    rooms = {path for path in package.iterdir() if path.suffix == ".py" and path.name[0] != "_"}
    rooms |= {path.parent for path in package.glob("*/__init__.py")}
    assert rooms - named == set()


@pytest.mark.parametrize("page", ["docs/adding.md", "docs/python.md"])
def test_a_page_names_what_is_there(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    assert NAMED.search(text)
    assert missing(text) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    place = PROJECT / page
    text = re.sub(r"^```.*?^```$", "", place.read_text(encoding="utf-8"), flags=re.M | re.S)
    lost = []
    for link in filter(None, (link for pair in LINK.findall(text) for link in pair)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, heading = link.partition("#")
        other = place.parent / file if file else place
        if not other.exists() or (heading and heading not in anchors(other)):
            lost.append(link)
    assert lost == []


def anchors(page: Path) -> set[str]:
    """The places of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    }


def test_the_recipes_page_leads_to_headings_of_the_page_about_features() -> None:
    page, features = (
        (PROJECT / "docs" / name).read_text(encoding="utf-8")
        for name in ("recipe.md", "features.md")
    )
    linked = dict(re.findall(r"^\| `(\w+)` \|.*\]\(features\.md#([\w-]+)\)", page, re.M))
    # Every key that the page about features shows in its table.
    shown = set(re.findall(r"`(?:serve|compile\.tensorrt)\.(\w+): ", features))
    assert shown == set(linked)
    assert set(linked.values()) <= anchors(PROJECT / "docs" / "features.md")


def guided_section() -> str:
    text = (PROJECT / "docs/features.md").read_text(encoding="utf-8")
    return text.partition("## Guided decoding on the demo model")[2].partition("\n## ")[0]


def test_the_body_for_http_has_inputs_of_the_text_model() -> None:
    (body,) = re.findall(r"-d '(\{.*?\})'", guided_section(), re.S)
    assert set(json.loads(body)) <= {tensor.name for tensor in MODELS[BLS].inputs}
    assert json.loads(body)["guided_decoding_guide_type"] in GUIDE_TYPES
