"""The texts of a first recipe: the user's, or a small public-domain book as a stopgap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.source.lines import Line, read_texts, to_json_line

BUNDLED = Path(__file__).parent / "texts"
STOPGAP = (
    "STOPGAP: {chapters} of Alice's Adventures in Wonderland, public domain. Most models have read "
    "it, and nobody asks your service for it: put texts like your traffic here"
)
HELD_OUT_SHARE = 3
"""One text of so many is held out where the user names one file."""


@dataclass(frozen=True)
class Texts:
    """Where calibration and evaluation read, and the files that have to be written for it.

    Attributes:
        calibration: ``quantize.calibration.text``.
        heldout: ``evaluate.text``; no text of it is in the other one.
        reasons: What each is, in words: that of calibration, and that of evaluation.
        files: What to write, by path.
    """

    calibration: Path
    heldout: Path
    reasons: tuple[str, str]
    files: dict[Path, bytes] = field(default_factory=dict)


def bundled(folder: Path) -> Texts:
    """Copies the public-domain book of this package beside the recipe, cut into two parts.

    Args:
        folder: The recipe's.
    """
    calibration, heldout = (folder / f"stopgap-{name}.jsonl" for name in ("calibration", "heldout"))
    return Texts(
        calibration,
        heldout,
        (
            STOPGAP.format(chapters="chapters I to VII"),
            STOPGAP.format(chapters="chapters VIII to XII, which are not calibrated on,"),
        ),
        {
            calibration: (BUNDLED / "calibration.jsonl").read_bytes(),
            heldout: (BUNDLED / "heldout.jsonl").read_bytes(),
        },
    )


def own(text: Path, heldout: Path | None, folder: Path, name: str) -> Texts:
    """Takes the user's files; one file alone is cut into two parts, which are written.

    The last third of its texts is held out, in one piece, because neighbours often belong together.
    A text that is there several times is held out only if none of its copies comes before.

    Args:
        text: A file of texts.
        heldout: Another one, to measure on; None takes a part of the first.
        folder: The recipe's, where the parts go.
        name: The recipe's name, with which theirs begin.

    Raises:
        UsageError: A file cannot be read, both have a text in common, or one text is all there is.
    """
    texts = list(dict.fromkeys(read_texts(text)))
    if heldout is not None:
        common = set(texts) & set(read_texts(heldout))
        if common:
            raise UsageError(
                f"{len(common)} texts of the held-out file are calibrated on",
                where=str(heldout),
                why="A gate that is measured on what was fitted to cannot be trusted",
                fix=f"Leave them out of one of the files, or name {text} alone to have it cut",
            )
        return Texts(text, heldout, ("yours", "yours; no text of it is calibrated on"))
    if len(texts) < 2:
        raise UsageError(
            "one text cannot be calibrated on and held out",
            where=str(text),
            fix="Name a file with more texts, or a second one with --heldout",
        )
    cut = len(texts) - max(len(texts) // HELD_OUT_SHARE, 1)
    first, last = (folder / f"{name}-{part}.jsonl" for part in ("calibration", "heldout"))
    return Texts(
        first,
        last,
        (
            f"the first {cut} of {len(texts)} texts of {text}",
            f"the last {len(texts) - cut} texts of {text}, which are not calibrated on",
        ),
        {first: _lines(texts[:cut]), last: _lines(texts[cut:])},
    )


def _lines(texts: Sequence[Line]) -> bytes:
    return "".join(f"{to_json_line(text)}\n" for text in texts).encode()
