"""The report's page in a real browser: nothing is cut off, whatever it is shown on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import render_html
from tests.unit.report_sample import LINEARS, quality, report, sibling

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")

LONG = "a-name-without-any-place-to-break-it-" * 4
# Shows the page in a frame of a screen's width, and says what reaches beyond its edge.
FRAME = """<!DOCTYPE html><body><iframe id="f" src="page.html" style="width:{width}px;height:9000px;
border:0"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = event => {{
  const page = event.target.contentDocument, seen = [...page.body.querySelectorAll("*")];
  const beyond = seen.filter(e => {{ const box = e.getBoundingClientRect();
    return box.width && box.height && (box.right > {width} + 0.5 || box.left < -0.5); }});
  const small = [...page.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height);
  document.getElementById("out").textContent = JSON.stringify({{
    wide: page.documentElement.scrollWidth, smallest: Math.min(...small),
    beyond: beyond.map(e => e.tagName + ": " + e.textContent.slice(0, 60)),
    first: page.querySelector(".verdict b").getBoundingClientRect().bottom,
    hidden: [...page.querySelectorAll(".folded")].map(e => e.getBoundingClientRect().height),
  }});
}};
</script>"""


def browse(folder: Path, *arguments: str) -> str:
    assert BROWSER
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/u",
    ]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout


def look(folder: Path, made: dict[str, Any], width: int) -> dict[str, Any]:
    (folder / "page.html").write_text(render_html(made))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    seen = browse(
        folder, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom",
        frame.as_uri(),
    )  # fmt: skip
    found = re.search(r'<pre id="out">(.*?)</pre>', seen, re.S)
    assert found
    return dict(json.loads(unescape(found.group(1))))


def wide_report() -> dict[str, Any]:
    """A report whose names are as long as they come."""
    made = report(name=LONG, siblings=[sibling(LONG), sibling("short")])
    made["verdict"] |= {"reasons": [LONG], "fix": LONG, "unreached": [LONG]}
    made["quality"] = quality()
    made["quality"]["by_document"][0] |= {"kl": 900.0, "begins": LONG[:80]}
    made["quality"]["completions"][0] |= {"prompt": LONG, "source": LONG, "written": LONG[3:]}
    made["conformance"]["checks"][0] |= {"status": "failed", "reason": LONG}
    made["conformance"] |= {"failed": 1}
    return made


@pytest.mark.parametrize("width", [360, 390, 760, 1200])
def test_nothing_is_cut_off_and_nothing_scrolls_sideways(width: int, tmp_path: Path) -> None:
    for made in (report(siblings=[sibling("other")]), wide_report()):
        seen = look(tmp_path, made, width)
        assert seen["wide"] <= width
        assert seen["beyond"] == []
        # Charts shrink nowhere so far that they cannot be read.
        assert seen["smallest"] >= 10
    assert len(LINEARS) > 10


def test_the_verdict_is_in_the_first_screen_of_a_phone(tmp_path: Path) -> None:
    seen = look(tmp_path, report(), 390)
    assert seen["first"] < 400
    # The recipe and the checks, all of which passed, are folded.
    assert seen["hidden"] == [0, 0]


def test_what_is_folded_on_the_screen_is_printed(tmp_path: Path) -> None:
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("no pdftotext is installed here")
    made = report()
    made["recipe"]["model"]["source"] = "this-is-printed"
    page = tmp_path / "page.html"
    page.write_text(render_html(made))
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/page.pdf", page.as_uri())
    text = subprocess.run(
        [program, str(tmp_path / "page.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert "source: this-is-printed" in text
    assert "characters of several tokens arrive whole" in text
