"""What the command line prints: progress, short lines, errors, or JSON."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pipeline import api
from pipeline.errors import PipelineError
from pipeline.progress import Bars, Lines, Progress, Warnings
from pipeline.recipe.schema import Recipe

# Longer lines are hard to read, whatever the window allows.
PAGE = 100
# For private use, so that no text has it.
_HARD = "\ue000"
# An interval, and a number with its sign, stays on one line.
_TOGETHER = re.compile(r"\[[^]]{1,40}\]|\S+ %")

# C0 but tab and line feed, delete and C1, as the pictures that Unicode has for them.
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_VISIBLE |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def progress_for(json_output: bool, verbosity: int) -> Progress:
    """Chooses bars on a terminal and lines in a log; both on stderr so that stdout stays clean.

    Args:
        json_output: Whether stdout is for a program.
        verbosity: Below 0 nothing is shown but warnings.
    """
    if verbosity < 0:
        return Warnings(sys.stderr)
    if sys.stderr.isatty() and not json_output:
        return Bars()
    return Lines(sys.stderr)


def print_answer(text: str) -> None:
    """Prints a piece of a model's answer as it comes.

    On a terminal, control characters are shown instead of obeyed: a model, or who wrote what it
    read, could otherwise move the cursor, overwrite lines or set the clipboard. A file or a pipe
    gets the text as it is.

    Args:
        text: Any.
    """
    print(text.translate(_VISIBLE) if sys.stdout.isatty() else text, end="", flush=True)


def print_json(value: object) -> None:
    """Prints a JSON value to stdout, escaped where the stream cannot take it as it is."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)


def print_error(error: PipelineError, *, json_output: bool) -> None:
    """Prints one paragraph on stderr, or the same facts as JSON on stdout."""
    if json_output:
        print_json(error.as_dict())
        sys.stdout.flush()
    else:
        show("error", str(error), "bold red")


def fitted(lines: Iterable[str], stream: TextIO, hang: int = 2) -> Iterator[str]:
    """Yields lines broken between words where a terminal is narrower; a log has them whole.

    Args:
        lines: Without line ends.
        stream: Where they go.
        hang: By how much more than its beginning the rest of a line is indented.
    """
    if not stream.isatty():
        yield from lines
        return
    width = min(shutil.get_terminal_size().columns, PAGE)
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + hang)
        kept = _TOGETHER.sub(lambda found: found[0].replace(" ", _HARD), line)
        # A path or a key is copied whole, so it is never broken itself.
        parts = textwrap.wrap(
            kept,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (part.replace(_HARD, " ") for part in parts or [""])


def open_recipe(
    path: Path, overrides: Sequence[str] | None, directory: Path | None, *, quiet: bool
) -> Recipe:
    """Reads the recipe of a command, and says on stderr what was decided while it was read.

    Args:
        path: The file.
        overrides: Each ``--set``.
        directory: That of ``--directory``, which is the current one by now.
        quiet: Says nothing.

    Raises:
        UsageError: The recipe or an override is wrong.
    """
    show_notices()
    recipe = api.load_recipe(path, overrides or ())
    for notice in () if quiet else recipe.notices:
        show("note", notice, "bold")
    return recipe.within(directory) if directory else recipe


class _Notices(logging.Handler):
    """Shows what the pipeline logs as labelled text."""

    def emit(self, record: logging.LogRecord) -> None:
        show(record.levelname.lower(), record.getMessage(), "bold")


def show_notices() -> None:
    """Shows warnings that are logged from here on in the way of errors, not in Python's."""
    logger = logging.getLogger("pipeline")
    if not any(isinstance(handler, _Notices) for handler in logger.handlers):
        logger.addHandler(_Notices())


def show(label: str, text: str, style: str) -> None:
    """Prints a labelled text on stderr: wrapped and coloured on a terminal, else as it is.

    Words are never broken, so that paths and commands can be copied.

    Args:
        label: Comes before the text, and gets the style.
        text: Paragraphs, one a line.
        style: As rich has it.
    """
    lines = "\n".join(fitted(f"{label}: {text}".splitlines(), sys.stderr))
    if not sys.stderr.isatty():
        print(lines, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(lines)
    shown.stylize(style, 0, len(label) + 1)
    Console(stderr=True).print(shown, soft_wrap=True)


def print_warning(repository: Path | None) -> None:
    """Says on stderr what whoever serves a repository has to know of it, if anything."""
    from pipeline.serving import warning_of

    if repository is not None and (warning := warning_of(repository)):
        print(f"warning: {repository}: {warning}", file=sys.stderr, flush=True)
