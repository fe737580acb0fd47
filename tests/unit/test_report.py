"""The report's facts: gathered from artifacts, shown as they are, and safe to open."""

from __future__ import annotations

import json
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from pipeline.economics.rates import NAME
from pipeline.errors import QualityGateError, StageError
from pipeline.formats import FORMATS
from pipeline.processor import processor_name
from pipeline.recipe.schema import Recipe
from pipeline.report import collect, render_html, render_markdown
from pipeline.report.quality import differences
from pipeline.report.words import duration, machine_words, percent, spread
from pipeline.store.artifact import Artifact
from pipeline.tables import number, size
from pipeline.verdict.failure import Failure

from . import report_sample as sample
from .report_sample import estimate, report

RENDERERS = (render_html, render_markdown)
HOSTILE = '<script>alert("1")</script> | *a* _b_ `c` [d](e) <img src=x onerror=f>'


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.style = ""
        self._open: list[str] = []
        self._title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)
        if tag in ("h1", "h2", "summary"):
            self._title = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("h1", "h2", "summary"):
            self.sections[self._title] = ""

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        elif self._open and self._open[-1] in ("h1", "h2", "summary"):
            self._title += data
        elif self._title:
            self.sections[self._title] += f"{data}\n"


def tiles(html: str) -> dict[str, tuple[str, str]]:
    """The tiles of the first screen: value, and what stands beside it, by label."""
    found = re.findall(r'<div class="tile"><span>(.*?)</span><b>(.*?)</b>(.*?)</div>', html)
    return {
        label: (value, "".join(re.findall('class="plain">(.*?)</small>', rest)))
        for label, value, rest in found
    }


@pytest.mark.parametrize("render", RENDERERS)
def test_what_users_wrote_is_shown_as_it_is(render: Any) -> None:
    """Read back by a parser of each language that is not ours."""
    quality = sample.quality()
    quality["completions"] = [
        {
            "prompt": f"{HOSTILE} prompt",
            "source": f"{HOSTILE} source",
            "written": f"{HOSTILE} written",
            "same_tokens": 3,
            "tokens": 9,
        }
    ]
    quality["by_document"][0] |= {"kl": 900.0, "begins": f"{HOSTILE} begins"}
    made = report(name=f"{HOSTILE} name", quality=quality)
    made["verdict"] |= {"reasons": [f"{HOSTILE} reason"], "fix": f"{HOSTILE} fix"}
    made["recipe"]["model"]["source"] = made["model"]["source"] = f"{HOSTILE} model"
    conformance = made["conformance"]
    conformance["checks"][0]["reason"] = f"{HOSTILE} check"
    text = render(made)
    html = text if render is render_html else MarkdownIt("commonmark").enable("table").render(text)
    page = Page(html)
    assert not {"script", "img", "em", "a"} & {tag for tag, _ in page.elements}
    seen = "".join([*page.sections, *page.sections.values()]).replace("\n", "")
    for what in ("name", "reason", "fix", "model", "check", "begins", "prompt"):
        assert f"{HOSTILE} {what}" in seen, what
    for what in ("source", "written"):
        # It parts in the last word, which is marked.
        assert re.sub(r"\s", "", f"{HOSTILE}{what}") in re.sub(r"\s", "", seen)


@pytest.mark.parametrize(
    "made", [report(), report(siblings=[sample.sibling("other")])], ids=["alone", "siblings"]
)
def test_the_page_loads_nothing_and_runs_nothing(made: dict[str, Any]) -> None:
    page = Page(render_html(made))
    assert {tag for tag, _ in page.elements}.isdisjoint(
        ("script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "a")
    )
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert names.isdisjoint(("src", "href", "srcset", "xlink:href", "action", "style"))
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "http" not in render_html(made)


def test_the_page_is_well_formed() -> None:
    for made in (report(), report(siblings=[sample.sibling("other")])):
        html = render_html(made)
        assert html.startswith("<!DOCTYPE html>")
        html = re.sub(r"<(meta|br)([^>]*)>", r"<\1\2/>", html.replace("<!DOCTYPE html>", ""))
        assert ElementTree.fromstring(html).tag == "html"


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    """A line of JSON may hold one, and a document that begins with it is named."""
    from pipeline.stages.report import _files

    quality = sample.quality()
    quality["by_document"][0] |= {"kl": 900.0, "begins": "\ud800 begins"}
    files = _files(report(quality=quality))
    assert json.loads(files["report.json"])["quality"]["by_document"][0]["begins"] == "? begins"
    assert b"? begins" in files["report.html"]


def test_the_verdict_is_the_first_thing_to_read() -> None:
    html = render_html(report())
    body = html.partition("</style>")[2]
    text = re.sub(r"<[^>]+>", " ", body)
    assert text.split()[:4] == ["demo", "INT4", "AWQ:", "ships."]
    assert '<div class="verdict good">' in body
    assert render_markdown(report()).splitlines()[2].startswith("**INT4 AWQ: ships.")


@pytest.mark.parametrize(
    ("verdict", "status", "tone"),
    [
        ("ACCEPT", "passed", "good"),
        ("REGRESSION", "failed", "bad"),
        ("ANOMALOUS", "failed", "bad"),
        ("FAILED", "failed", "bad"),
        ("INCONCLUSIVE", "failed", "open"),
        ("UNFINISHED", "unfinished", "open"),
    ],
)
def test_each_verdict_has_its_colour(verdict: str, status: str, tone: str) -> None:
    made = report()
    made["verdict"] |= {"verdict": verdict, "status": status, "headline": f"it is {verdict}"}
    assert f'<div class="verdict {tone}"><b>it is {verdict}</b>' in render_html(made)
    assert f"**it is {verdict}**" in render_markdown(made)


def test_a_reason_that_the_headline_gives_is_not_said_twice() -> None:
    made = report()
    made["verdict"] |= {
        "headline": "INT4 AWQ: does not ship. Perplexity +5.00 % of at most 2 %, and 1 more",
        "reasons": ["perplexity +5.00 % of at most 2 %", "agreement 80.00 % of at least 93 %"],
    }
    for render in RENDERERS:
        text = render(made).replace("\N{NO-BREAK SPACE}", " ")
        assert text.count("5.00 % of at most 2 %") == 1
        assert text.count("agreement 80.00 % of at least 93 %") == 1


def test_beside_each_number_is_that_of_16_bit() -> None:
    plain = sample.sibling("plain")
    shown = tiles(render_html(report(siblings=[plain])))
    assert shown == {
        # 7,344,640 bytes are 7.004 MiB, and 2,747,695 are 2.620.
        "checkpoint": ("2.6 MiB", "16 bit: 7.0 MiB"),
        # The source was computed in float32, whatever the recipe's 16 bits are.
        "perplexity": ("1.393", "source: 1.393"),
        "bits per byte": ("0.1188", "source: 0.1177"),
        "agreement with the source": ("97.12 %", ""),
        "tokens/s, 8 streams": ("2,156", "16 bit: 1,234"),
        # 2.50 an hour for half of 3600 s of 1234.5 tokens each: 2.5 / 2.2221 million.
        "USD per million tokens": ("0.64", "16 bit: 1.13"),
        "memory of the server": ("412.0 MiB", "16 bit: 498.0 MiB"),
    }
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", render_markdown(report()), re.M)
    assert ("checkpoint", "2.6 MiB (37 % of 16 bit)", "16 bit: 7.0 MiB") in rows
    assert (
        "tokens/s, 8 streams",
        "2,156 (2,005 to 2,286)",
        "16 bit: no build to compare",
    ) in rows


def test_a_build_in_16_bit_stands_beside_itself() -> None:
    made = report()
    made["checkpoint"] |= {"quant_algo": FORMATS["float16"].quant_algo, "format": "float16"}
    shown = tiles(render_html(made | {"siblings": [sample.sibling("other")]}))
    assert shown["tokens/s, 8 streams"] == ("2,156", "16 bit: this build")
    assert "(not quantized)" in render_markdown(made)


def test_every_number_of_the_json_is_on_both_pages() -> None:
    made = report()
    for render in RENDERERS:
        text = re.sub(r"<[^>]+>", " ", render(made)).replace("\N{NO-BREAK SPACE}", " ")
        shown = [
            float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*(?:e-\d+)?", text)
        ]
        quality, fidelity, load = made["quality"], made["fidelity"], made["load"]
        wanted = [
            quality["perplexity"], quality["bits_per_byte"], quality["kl_divergence"],
            quality["kl_divergence_p99"], quality["tasks"][0]["accuracy"], fidelity["perplexity"],
            fidelity["kl_divergence"], fidelity["against_checkpoint"]["kl_divergence"],
            load["prefill_tokens_per_second"], load["decode_tokens_per_second"],
            *(row["tokens_per_second"] for row in load["measurements"]),
            quality["top1_agreement"], fidelity["top1_agreement"],
        ]  # fmt: skip
        for values in wanted:
            for value in values.values():
                close = [
                    v
                    for v in shown
                    if v in (pytest.approx(value, rel=6e-3), pytest.approx(value * 100, rel=6e-3))
                ]
                assert close, (render.__name__, value)
        for linear in quality["signal_to_noise"][:10]:
            assert linear["linear"] in text
        assert quality["signal_to_noise"][10]["linear"] not in text


def test_the_gates_are_shown_with_what_was_measured() -> None:
    made = report()
    made["gates"][1] |= {
        "verdict": "INCONCLUSIVE", "measured": 0.931, "low": 0.92, "high": 0.94,
        "evidence": "the limit lies inside the interval; about 41,000 more tokens would probably "
        "settle it", "more_tokens": 41032,
    }  # fmt: skip
    text = render_markdown(made)
    assert (
        "| checkpoint: agreement | 93.10 % \\[92.00 %, 94.00 %\\] | at least 93 % | INCONCLUSIVE"
        ": the limit lies inside the interval; about 41,000 more tokens would probably settle it |"
    ) in text
    assert (
        "| checkpoint: perplexity | +0.01 % \\[-0.10 %, +0.12 %\\] | at most 2 % | ACCEPT" in text
    )
    cell = re.search(r"<td[^>]*>(<svg class=\"interval\".*?)</td>", render_html(made))
    assert cell
    assert "+0.01" in cell.group(1)


def test_the_gate_of_a_task_names_it() -> None:
    made = report()
    words = "loss of accuracy 0.0 points of at most 3 points"
    lost = made["gates"][0] | {
        "name": "accuracy_loss", "measured": -0.0, "low": -0.0, "high": 0.0, "limit": 0.03,
    }  # fmt: skip
    made["gates"] = [
        lost | {"evidence": f"hellaswag: {words}"},
        lost | {"verdict": "INCONCLUSIVE", "evidence": f"mmlu: {words}: the limit lies inside"},
    ]
    text = render_markdown(made)
    assert "| checkpoint: loss of accuracy, hellaswag | 0.0 points" in text
    assert "| at most 3 points | ACCEPT |" in text
    assert "| checkpoint: loss of accuracy, mmlu | 0.0 points" in text
    assert "INCONCLUSIVE: the limit lies inside |" in text


def test_a_gate_without_a_number_has_its_evidence() -> None:
    made = report()
    made["gates"] = [
        made["gates"][0]
        | dict.fromkeys(("measured", "low", "high", "limit"))
        | {"name": "completions", "verdict": "ANOMALOUS", "evidence": "the completion is empty"}
    ]
    assert "| checkpoint: completions | - | - | ANOMALOUS: the completion is empty |" in (
        render_markdown(made)
    )
    assert "the completion is empty" in render_html(made)
    assert 'class="interval"' not in render_html(made)


def test_what_differs_in_completions_is_marked_from_the_word_on() -> None:
    html = render_html(report())
    assert re.findall(r"<mark>(.*?)</mark>", html) == [
        "play with his red ball in the sand.",
        "swim with his big dog every day.",
    ]
    quality = sample.quality()
    quality["completions"][0] |= {"source": " the sand", "written": " the sea"}
    html = render_html(report(quality=quality))
    assert re.findall(r"<bdi>(.*?)</bdi></p></div>", html)[:2] == [
        "the <mark>sand</mark>",
        "the <mark>sea</mark>",
    ]
    assert "the same, all 10 tokens" in html


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", ([], [])),
        ("", "a b", ([], [("a b", True)])),
        ("a b c", "a b c", ([("a b c", False)], [("a b c", False)])),
        # The beginning counts however short it is, and three words in a row are no chance.
        (
            "a x c d e f",
            "a y c d e g",
            (
                [("a ", False), ("x ", True), ("c d e ", False), ("f", True)],
                [("a ", False), ("y ", True), ("c d e ", False), ("g", True)],
            ),
        ),
        ("x the y", "u the w", ([("x the y", True)], [("u the w", True)])),
        # Only white space differs: no word does.
        ("a\nb", "a b", ([("a\nb", False)], [("a b", False)])),
    ],
)
def test_words_that_two_texts_do_not_share(one: str, other: str, expected: Any) -> None:
    assert differences(one, other) == expected


def test_nothing_of_a_text_is_lost_whatever_differs() -> None:
    random_ = random.Random(1)
    for _ in range(300):
        texts = [" ".join(random_.choices("abcd", k=random_.randrange(14))) for _ in range(2)]
        for text, pieces in zip(texts, differences(texts[0], texts[1]), strict=True):
            assert "".join(piece for piece, _ in pieces) == text


def test_the_worst_documents_are_named_with_how_they_begin() -> None:
    quality = sample.quality()
    for place, kl in ((70, 9.0), (3, 8.0), (50, 7.0)):
        row = quality["by_document"][place]
        row |= {"kl": kl * row["tokens"], "begins": f"Chapter {place}\n\nof a book"}
    for render in RENDERERS:
        text = render(report(quality=quality))
        assert re.findall(r"Chapter (\d+) of a book", text) == ["70", "3", "50"]


def test_float16_has_no_empty_sections() -> None:
    """Nothing differs, so there is nothing to show of where it does."""
    quality = sample.quality()
    for row in quality["by_document"]:
        row["kl"] = 0.0
    quality |= {"signal_to_noise": [], "tasks": [], "completions": []}
    for render in RENDERERS:
        text = render(report(quality=quality))
        for gone in ("suffer", "Signal to noise", "own words", "multiple choice", "nats/token"):
            assert gone not in text, gone
    page = Page(render_html(report(quality=quality)))
    assert [title for title, text in page.sections.items() if not text.strip()] == []


def test_activations_beyond_the_dtype_are_a_warning() -> None:
    quality = sample.quality()
    quality["activations"] |= {"beyond": 3, "largest": None}
    for render in RENDERERS:
        text = render(report(quality=quality))
        assert "3 activations are beyond 65504, the range of float16" in text
        assert "the largest is infinite" in text


def test_the_engine_is_held_against_the_checkpoint_and_the_source_apart() -> None:
    markdown = render_markdown(report())
    part = markdown.partition("## Engine against checkpoint")[2].partition("\n## ")[0]
    assert "| agreement: same likeliest token | 99.95 % \\[99.91 %, 100.00 %\\] | 97.03 %" in part
    fidelity = sample.fidelity()
    fidelity |= {"kl_divergence": None, "top1_agreement": None}
    fidelity["against_checkpoint"] |= dict.fromkeys(
        ("kl_divergence", "kl_divergence_p99", "top1_agreement")
    )
    for render in RENDERERS:
        text = render(report(fidelity=fidelity))
        part = text.partition("Engine against checkpoint")[2].partition("Size")[0]
        assert "perplexity increase" in part
        for word in ("KL", "likeliest", "None"):
            assert word not in part, word


def test_conformance_is_folded_when_all_passed_and_open_when_not() -> None:
    html = render_html(report())
    assert "<details><summary>Conformance: 3 passed, 1 skipped</summary></details>" in html
    conformance = sample.conformance()
    conformance["checks"][1] |= {"status": "failed", "reason": "it went on"}
    conformance |= {"passed": 2, "failed": 1}
    html = render_html(report(conformance=conformance))
    assert "<h2>Conformance: 2 passed, 1 failed, 1 skipped</h2>" in html
    assert "says so: it went on" in html


def test_what_is_folded_is_printed() -> None:
    page = Page(render_html(report()))
    print_rules = page.style.partition("@media print")[2]
    assert re.search(r"details:not\(\[open\]\) \+ \.folded \{ display: block; \}", print_rules)
    assert "name: demo" in page.sections["Recipe"]


def test_cost_and_roofline_are_shown_where_they_are_known() -> None:
    roofline = {
        "concurrency": 8,
        "bound_tokens_per_second": 5000.0,
        "reached": 0.43,
        "by": "memory",
        "hardware": "2 CPUs of X",
        "source": "measured here",
    }
    for render in RENDERERS:
        text = render(report(roofline=roofline)).replace("\N{NO-BREAK SPACE}", " ")
        assert "at 2.5 USD an hour, when the machine is asked for tokens 50 % of the time" in text
        assert "With 8 streams, 43 % of what the hardware allows at most was reached" in text
        assert "5,000 tokens/s, bound by memory (2 CPUs of X, measured here)" in text
        text = render(report(cost=None))
        assert "USD" not in text
        assert "hardware allows" not in text


def test_the_machine_is_described_in_words() -> None:
    machine = {"processor": "AMD EPYC", "architecture": "x86_64", "cpus": 2}
    assert machine_words(machine) == "AMD EPYC (x86-64), 2 processor cores"
    assert machine_words({"architecture": "riscv64", "cpus": 1}) == "riscv64, 1 processor core"
    assert machine_words(machine | {"gpu": "H100", "x": None}).endswith("cores, gpu H100")
    for render in RENDERERS:
        assert "AMD EPYC (x86-64), 2 processor cores" in render(report())


def test_keys_of_config_json_that_nobody_reads_are_listed_once() -> None:
    model = report()["model"] | {"unread_keys": ["is_llama_config", "rope_interleaved"]}
    for render in RENDERERS:
        assert render(report(model=model)).count("is_llama_config, rope_interleaved") == 1
        assert "nobody reads" not in render(report()).lower()


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    """Read by a parser that drops or invents cells where a row has others."""
    made = report(siblings=[sample.sibling("other")])
    text = render_markdown(made)
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == len(re.findall(r"^\|-+", text, re.M))
    assert "|" not in re.sub(r"<pre>.*?</pre>|Document \d+ \|", "", html, flags=re.S)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.02), "2.00 %"),
        (size(512), "512 B"),
        (size(1536), "1.5 KiB"),
        (size(16 << 30), "16.0 GiB"),
        (duration(4.24), "4.2 s"),
        (duration(200), "3 min 20 s"),
        (duration(59.99), "60.0 s"),
        (duration(7500), "2 h 5 min"),
        (number(0.00012346), "0.0001235"),
        (number(12345.6), "12,346"),
        (number(1234.5), "1,234"),
        (number(123.456, 2), "123"),
        (number(7), "7"),
        (number(20000), "20,000"),
        (number(None), "-"),
        (spread(None), "-"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def _artifact(root: Path, stage: str, facts: dict[str, Any], name: str, content: Any) -> Artifact:
    """An artifact of one file, made on the day of the month that is the length of its name."""
    folder = root / stage
    folder.mkdir()
    manifest = {
        "schema": 1,
        "digest": "d" * 64,
        "facts": facts,
        "files": {},
        "created": f"2026-07-{len(stage):02}T12:00:00Z",
        "seconds": 1.5,
        "material": {"material": {"hub": "m", "commit": "abc123"}},
    }
    (folder / "artifact.json").write_text(json.dumps(manifest))
    (folder / name).write_text(json.dumps(content))
    return Artifact(stage, "k" * 64, "d" * 64, folder, facts)


def _recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": "t",
            "model": {"source": "m"},
            "quantize": {"format": "float16"},
            "evaluate": {"text": "t.txt", "gates": {"perplexity_increase": 0.02}},
            **sections,
        }
    )


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def _artifacts(root: Path) -> dict[str, Artifact]:
    source = {"parameters": 10, "bytes": 20, "architecture": "LlamaForCausalLM"}
    written = {"bytes": 10, "quant_algo": None, "kv_cache_quant_algo": None}
    made = (
        ("source", source, "config.json", {**CONFIG, "mine": 1}),
        ("quantize", written, "config.json", 0),
        ("evaluate", {}, "evaluation.json", sample.quality() | {"signal_to_noise": []}),
        ("compile", {}, "engine.bin", 0),
        ("fidelity", {}, "fidelity.json", sample.fidelity()),
        ("repository", {}, "config.pbtxt", 0),
        ("verify", {}, "verify.json", sample.conformance()),
        ("bench", {}, "bench.json", sample.load()),
    )
    return {stage: _artifact(root, stage, facts, *file) for stage, facts, *file in made}


def _change(artifact: Artifact, name: str, **values: Any) -> None:
    path = artifact.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_report_is_made_of_artifacts_alone(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    found = collect(_recipe(cost={"price_per_hour": 3.6}), made)
    assert found == collect(_recipe(cost={"price_per_hour": 3.6}), made)
    assert list(found) == [
        "schema", "name", "version", "created", "verdict", "gates", "machine", "recipe", "model",
        "checkpoint", "engine", "size", "quality", "fidelity", "load", "cost", "roofline",
        "conformance", "stages", "seconds", "tools", "siblings",
    ]  # fmt: skip
    assert found["schema"] == 3
    assert found["verdict"]["verdict"] == "ACCEPT"
    assert found["verdict"]["status"] == "passed"
    assert found["model"]["unread_keys"] == ["mine"]
    assert found["model"]["commit"] == "abc123"
    # The repository has the longest name and so the latest day.
    assert found["created"] == "2026-07-10T12:00:00Z"
    assert found["machine"] == {"processor": "AMD EPYC", "architecture": "x86_64", "cpus": 2}
    assert found["seconds"] == 8 * 1.5
    # "0" is what the engine's file holds; its manifest lies beside it.
    engine = sum(path.stat().st_size for path in made["compile"].path.iterdir())
    assert found["size"] == {
        "bytes_16bit": 20, "checkpoint_bytes": 10, "engine_bytes": engine, "share": 0.5,
    }  # fmt: skip
    # 3.6 an hour is a thousandth a second; half of it is used: 2156.25 tokens cost 0.002.
    assert found["cost"]["per_million_tokens"]["value"] == pytest.approx(2000 / 2156.25)
    fast, slow = (
        found["cost"]["per_million_tokens"]["low"],
        found["cost"]["per_million_tokens"]["high"],
    )
    assert (fast, slow) == pytest.approx((2000 / (2156.25 * 1.06), 2000 / (2156.25 * 0.93)))
    assert {"torch", "nvidia-pytriton", "tritonclient", "openvino"} <= found["tools"].keys()
    assert found["quality"] == sample.quality() | {"signal_to_noise": []}
    assert found["fidelity"] == sample.fidelity()
    assert "perplexity_increase" in {gate["name"] for gate in found["gates"]}
    assert {gate["subject"] for gate in found["gates"]} == {"checkpoint", "engine"}
    # The load test's artifact has no rates of its processor, and nothing is measured for it now.
    assert found["roofline"] is None
    rates = {"processor": processor_name(), "cpus": len(os.sched_getaffinity(0))}
    rates |= {"measured": "2026-07-01", "bytes_per_second": 1e9}
    rates["float32_operations_per_second"] = 1e9
    (made["bench"].path / NAME).write_text(json.dumps(rates))
    bound = collect(_recipe(), made)["roofline"]
    assert bound["reached"] * bound["bound_tokens_per_second"] == pytest.approx(2156.25)
    for render in RENDERERS:
        assert "None" not in re.sub(r"(?s)<summary>Recipe.*", "", render(found))


def test_numbers_that_are_not_finite_are_said_to_be(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    nothing = estimate(None)
    quality = {
        name: nothing if isinstance(value, dict) and "low" in value else value
        for name, value in sample.quality().items()
    }
    quality |= {"source_perplexity": None, "source_bits_per_byte": None, "tasks": []}
    for row in quality["by_document"]:
        row |= {"source_nll": None, "nll": None, "kl": None}
    quality["signal_to_noise"] = [{"linear": "a", "db": None, "exact": False}]
    _change(made["evaluate"], "evaluation.json", **quality)
    reached = {name: made[name] for name in ("source", "quantize", "evaluate")}
    found = collect(_recipe(), reached)
    assert found["verdict"]["verdict"] == "ANOMALOUS"
    for render in RENDERERS:
        text = render(found)
        assert "no finite number" in text
        assert not re.search(r"\b(None|nan|inf)\b", re.sub(r"(?s)<summary>Recipe.*", "", text))


def test_a_broken_gate_fails_the_report_and_what_was_not_reached_is_named(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    _change(
        made["evaluate"],
        "evaluation.json",
        perplexity=estimate(1.4627, 1.44, 1.48),
        perplexity_increase=estimate(0.05, 0.04, 0.06),
    )
    reached = {name: made[name] for name in ("source", "quantize", "evaluate")}
    error = QualityGateError("the checkpoint is worse", fix="Try another format").as_dict()
    failure = Failure("evaluate", True, error, unreached=("compile", "verify"))
    found = collect(_recipe(), reached, failure)
    verdict = found["verdict"]
    assert verdict["verdict"] == "REGRESSION"
    assert verdict["status"] == "failed"
    assert verdict["stage"] == "evaluate"
    assert verdict["fix"] == "Try another format"
    assert verdict["unreached"] == ["compile", "verify"]
    broken = [gate for gate in found["gates"] if gate["verdict"] != "ACCEPT"]
    assert [(gate["name"], gate["measured"], gate["limit"]) for gate in broken] == [
        ("perplexity_increase", 0.05, 0.02)
    ]
    for name in ("load", "conformance", "engine", "fidelity", "machine", "cost"):
        assert found[name] is None, name
    html, markdown = render_html(found), render_markdown(found)
    assert '<div class="verdict bad"><b>' in html
    assert "5.00" in html.partition('<div class="verdict bad">')[2].partition("</b>")[0]
    assert "Conformance" not in html
    assert "Not reached: compile, verify." in html
    assert "Not reached: compile, verify." in markdown
    assert "| compile | - | not reached |  |" in markdown
    # Its artifact is there and was refused: one row, which says so.
    assert re.findall(r"^\| (evaluate.*?) \|", markdown, re.M) == ["evaluate, failed"]
    assert len(re.findall(r"evaluate, failed", html)) == 1


def test_a_failed_check_fails_the_report_whatever_the_run_says(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    checks = [
        {"name": "end_token", "status": "failed", "proves": "it ends", "reason": "it went on"}
    ]
    _change(made["verify"], "verify.json", checks=checks, failed=1)
    found = collect(_recipe(), made)
    assert found["verdict"]["verdict"] == "FAILED"
    assert found["verdict"]["status"] == "failed"
    assert found["verdict"]["reasons"] == ["end_token: it went on"]
    assert '<div class="verdict bad">' in render_html(found)
    assert "end_token: it went on" in render_html(found)


def test_a_run_that_could_not_go_on_is_unfinished(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    error = StageError("trtllm-build failed", why="It ran out of memory").as_dict()
    failure = Failure("compile", False, error, unreached=("verify",))
    found = collect(_recipe(), {"source": made["source"]}, failure)
    assert found["verdict"]["verdict"] == "UNFINISHED"
    assert found["verdict"]["status"] == "unfinished"
    html, markdown = render_html(found), render_markdown(found)
    for text in ("trtllm-build failed", "It ran out of memory", "Not reached: verify."):
        assert text in html
        assert text in markdown
    assert '<div class="verdict open">' in html
    assert "None" not in re.sub(r"(?s)<summary>Recipe.*", "", markdown)
    # The stage at which it ended is in its place among the stages, also without an artifact.
    chain = Page(html).sections["Where this comes from"]
    assert re.findall(r"^(source|compile|verify)$", chain, re.M) == ["source", "compile", "verify"]
    assert "| compile | - | failed |  |\n| verify | - | not reached |  |" in markdown


def test_an_export_that_is_not_served_has_no_speed(tmp_path: Path) -> None:
    made = _artifacts(tmp_path)
    for name in ("repository", "verify", "bench", "fidelity", "evaluate"):
        del made[name]
    found = collect(_recipe(evaluate=None), made)
    assert found["gates"] == []
    for render in RENDERERS:
        text = render(found)
        for word in ("onformance", "Load", "tokens/s", "measured on", "Gates"):
            assert word not in text, word
