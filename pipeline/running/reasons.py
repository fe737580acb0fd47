"""Why a stage runs, in words: what is damaged, gone, or other than at the last run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.store.artifact import Damage
from pipeline.store.digests import canonical_json

SHOWN = 3
"""Changes that are told one by one."""
WORDS: Mapping[str, str] = {
    "version": "this version of the pipeline does it in another way",
    "material.directory": "the model lies in another folder",
    "material.files": "the model's files were touched",
    "material.hub": "another model of the Hub is meant",
    "material.commit": "the Hub has another commit of the model",
    "material.text": "the evaluation text has other contents",
    "material.calibration_text": "the calibration text has other contents",
    "material.tasks": "the tasks have other contents",
    "material.code": "the pipeline's own code changed",
    "material.models": "the code that runs inside Triton changed",
    "material.machine": "this is another machine",
    "material.engine.processor": "this is another machine",
    "failure": "the run failed in another way",
}
"""What has changed where a part of a key's material did, also below it."""
_TOOLS = ("material.tools.", "material.engine.tools.")
_RECIPE, _MATERIAL = "recipe.", "material."


def reason_to_run(
    material: Mapping[str, Any], before: Mapping[str, Any] | None, damage: Damage | None
) -> str:
    """Says why a stage has to run.

    Args:
        material: What its key is the digest of.
        before: The same of the last run of the recipe; None where there was none.
        damage: What is wrong with its artifact, if there is one.
    """
    if damage:
        return f"its artifact is damaged: {damage.problems[0]}"
    if before is None:
        return "never ran"
    # What the recipe says comes first: other differences often follow from it.
    found = sorted(_changes(before, material), key=lambda change: not change[0].startswith(_RECIPE))
    changes = list(dict.fromkeys(words for _, words in found))
    if not changes:
        return "its artifact is gone from the store"
    shown = "; ".join(changes[:SHOWN])
    return shown if len(changes) <= SHOWN else f"{shown}; and {len(changes) - SHOWN} more"


def _changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Differences between two JSON values: their dotted paths, and what changed in words."""
    if before == after:
        return
    if path.startswith(_MATERIAL):
        # What a stage did not depend on before is told part by part, as what it does not now.
        if before is None and isinstance(after, dict):
            before = {}
        if after is None and isinstance(before, dict):
            after = {}
    if path in WORDS:
        yield path, WORDS[path]
    elif isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            below = f"{path}.{name}" if path else name
            yield from _changes(before.get(name), after.get(name), below)
    else:
        yield path, _change(path, before, after)


def _change(path: str, before: Any, after: Any) -> str:
    if path.startswith("inputs."):
        return f"the {path.removeprefix('inputs.')} artifact changed"
    for tools in _TOOLS:
        if path.startswith(tools):
            now, was = (value or "not there" for value in (after, before))
            return f"{path.removeprefix(tools)} is {now} now and was {was}"
    name = path.removeprefix(_RECIPE).removeprefix(_MATERIAL)
    old, new = canonical_json(before), canonical_json(after)
    if _is_short(old) and _is_short(new):
        return f"{name} changed from {old} to {new}"
    return f"{name} changed"


def _is_short(json_text: str) -> bool:
    return len(json_text) <= 40 and json_text[0] not in "[{"
