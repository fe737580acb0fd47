"""What the pages say of the code is there: files, and the names that are given with them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click import Context
from typer.main import get_command

from pipeline.cli.main import app
from pipeline.triton.contract import BLS, MODELS
from trtllm_client._request import GUIDE_TYPES

from ..conftest import PROJECT

PAGES = ("ARCHITECTURE.md", "docs/adding.md", "docs/python.md", "examples/README.md")
# A file by its path from the root, and perhaps names in it.
NAMED = re.compile(r"`([\w.-]+/[\w./-]+\.\w+)`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


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


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *PAGES,
        "docs/clients.md",
        "docs/features.md",
        "docs/gpu.md",
        "docs/init.md",
        "docs/recipe.md",
    ],
)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    place = PROJECT / page
    links = LINK.findall(place.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not _exists(place, link)] == []


def test_the_recipes_page_leads_to_headings_of_the_page_about_features() -> None:
    page, features = (
        (PROJECT / "docs" / name).read_text(encoding="utf-8")
        for name in ("recipe.md", "features.md")
    )
    # A heading's place, as GitHub makes it.
    places = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", features, re.M)
    }
    linked = dict(re.findall(r"^\| `(\w+)` \|.*\]\(features\.md#([\w-]+)\)", page, re.M))
    # Every key that the page about features shows in its table.
    shown = set(re.findall(r"`(?:serve|compile\.tensorrt)\.(\w+): ", features))
    assert shown == set(linked)
    assert set(linked.values()) <= places


def _exists(page: Path, link: str) -> bool:
    return (page.parent / link).exists()


def guided_section() -> str:
    text = (PROJECT / "docs/features.md").read_text(encoding="utf-8")
    return text.partition("## Guided decoding on the demo model")[2].partition("\n## ")[0]


def test_the_commands_about_guided_decoding_have_options_that_are_there() -> None:
    """Each is read by the command line itself, up to where it would do something."""
    lines = [line for line in guided_section().splitlines() if line.startswith("trtllm-pipeline ")]
    used = set()
    for line in lines:
        _, command, *arguments = shlex.split(line)
        found = get_command(app).get_command(Context(get_command(app)), command)  # type: ignore[attr-defined]
        found.make_context(command, list(arguments))
        used |= {word for word in arguments if word.startswith("--")}
    assert {"--json-schema", "--regex", "--grammar", "--json-object", "--set"} <= used


def test_the_body_for_http_has_inputs_of_the_text_model() -> None:
    (body,) = re.findall(r"-d '(\{.*?\})'", guided_section(), re.S)
    assert set(json.loads(body)) <= {tensor.name for tensor in MODELS[BLS].inputs}
    assert json.loads(body)["guided_decoding_guide_type"] in GUIDE_TYPES
