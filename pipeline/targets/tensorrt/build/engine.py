"""The engine directory that ``trtllm-build`` wrote: read back, compared, and described.

``trtllm-build`` changes what it was asked for and says so only in its log, so the configuration it
wrote is held against the one that was predicted. Its ``config.json`` names neither GPU nor
TensorRT; ``engine.json`` beside it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CompileError
from pipeline.reading.json_text import read_json
from pipeline.store.artifact import MANIFEST as ARTIFACT_MANIFEST
from pipeline.store.artifact import read_manifest
from pipeline.store.digests import digest_of, file_digest, files_below

MANIFEST = "engine.json"
SCHEMA = 1
# What sha256sum wrote of an engine that was built elsewhere.
SUMS = "SHA256SUMS"
AGAIN = "Run it again; build.log shows what it did"

SHOWN = 8
"""Missing files that an error names."""

# Options that decide which requests the engine serves and how; another value than the predicted
# one makes a different service. (max_input_len does not: packed engines ignore it.)
SERVICE_OPTIONS = frozenset(
    (
        "max_batch_size",
        "max_seq_len",
        "max_num_tokens",
        "max_beam_width",
        "kv_cache_type",
        "gather_context_logits",
        "speculative_decoding_mode",
        "max_draft_len",
        "lora_config.lora_target_modules",
        "lora_config.max_lora_rank",
        "plugin_config.lora_plugin",
        "plugin_config.gpt_attention_plugin",
        "plugin_config.remove_input_padding",
        "plugin_config.context_fmha",
        "plugin_config.use_paged_context_fmha",
        "plugin_config.tokens_per_block",
    )
)


@dataclass(frozen=True)
class Reason:
    """Why an engine is otherwise than predicted.

    Attributes:
        why: How that comes about.
        fix: What to do.
    """

    why: str
    fix: str


OVERRIDDEN = Reason(
    "trtllm-build overrode the options, and the pre-flight did not foresee it",
    "Look for the override in build.log; set the options to what it allows, or report it with the "
    "recipe",
)


@dataclass(frozen=True)
class Difference:
    """An option that the engine has otherwise than predicted.

    Attributes:
        option: Its name, dotted below ``build_config``.
        wanted: The predicted value.
        found: The engine's; ``None`` also where it has no such option.
    """

    option: str
    wanted: Any
    found: Any

    @property
    def changes_service(self) -> bool:
        """Whether clients would notice."""
        return self.option in SERVICE_OPTIONS

    def __str__(self) -> str:
        return f"{self.option} is {_show(self.found)}, not {_show(self.wanted)}"


def read_config(directory: Path) -> dict[str, Any]:
    """Reads ``config.json`` of an engine directory.

    Raises:
        CompileError: It is missing or not an engine's; says what it is of, where it shows.
    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise _no_engine(path, "There is no such file") from error
    except (OSError, ValueError) as error:
        raise _no_engine(path, str(error)) from error
    if not isinstance(config, dict):
        raise _no_engine(path, "It is not a JSON object")
    if other := _another_kind(config):
        what, why = other
        raise CompileError(what, where=str(directory), why=why, fix=AGAIN)
    for key, kind in (("pretrained_config", dict), ("build_config", dict), ("version", str)):
        if not isinstance(config.get(key), kind):
            raise _no_engine(path, f"It has no {key}, which every engine's has")
    mapping = config["pretrained_config"].get("mapping") or {}
    plugins = config["build_config"].get("plugin_config") or {}
    if not (isinstance(mapping, dict) and isinstance(plugins, dict)):
        raise _no_engine(path, "Its mapping or its plugin_config is no object")
    if type(mapping.get("world_size") or 1) is not int:
        raise _no_engine(path, "Its world_size is no whole number")
    return config


def _no_engine(path: Path, why: str) -> CompileError:
    return CompileError(
        "there is no readable config.json of an engine", where=str(path), why=why, fix=AGAIN
    )


def _another_kind(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a folder is by its ``config.json`` and how that shows; None for an engine of ours."""
    if "target" in config:  # upstream's has no such key
        why = f"Its config.json names the target {config['target']}"
        return "this is an engine of the CPU target", why
    if "pretrained_config" in config:
        return None
    if "architecture" in config:
        why = "Its config.json is what trtllm-build reads, and an engine is what it writes"
        return "this is a checkpoint, not an engine", why
    if "architectures" in config:
        return "this is a Hugging Face model, not an engine", "Its config.json is a model's"
    return None


def world_size(config: Mapping[str, Any]) -> int:
    """Returns the number of ranks of an engine, which need a GPU each.

    Args:
        config: The engine's ``config.json``; without ``world_size`` in its mapping it has one rank.
    """
    mapping = config["pretrained_config"].get("mapping") or {}
    return int(mapping.get("world_size") or 1)


def check_ranks(directory: Path, ranks: int) -> int:
    """Checks that there is one engine file per rank.

    Returns:
        Their size in bytes.

    Raises:
        CompileError: One is missing, empty or left over.
    """
    found = {path.name: path.stat().st_size for path in directory.glob("rank*.engine")}
    # Whatever number a damaged config.json says, no more names are made than can be there or shown.
    names = [f"rank{rank}.engine" for rank in range(min(ranks, len(found) + SHOWN))]
    wanted = set(names)
    problems = [f"{name} is missing" for name in names if name not in found][:SHOWN]
    problems += [f"{name} belongs to no rank" for name in sorted(found.keys() - wanted)]
    problems += [f"{name} is empty" for name in sorted(wanted & found.keys()) if not found[name]]
    if problems:
        raise CompileError(
            f"the engine is not complete: {'; '.join(problems)}",
            where=str(directory),
            why=f"config.json says world_size {ranks}",
            fix="Run it again; build.log shows which rank failed",
        )
    return sum(found.values())


def compare(effective: Mapping[str, Any], predicted: Mapping[str, Any]) -> list[Difference]:
    """Lists where the ``build_config`` of an engine is not what was predicted.

    Args:
        effective: ``build_config`` of the engine.
        predicted: The same names, nested alike; options that it lacks are not compared.

    Returns:
        The differences, by option; case does not count, nor whether a plugin's ``auto`` is written
        as such or as the dtype it stands for.
    """
    plugins = effective.get("plugin_config") or {}
    dtype = plugins.get("dtype")
    wanted = _flatten(predicted)
    found = _flatten(effective)
    return [
        Difference(option, value, found.get(option))
        for option, value in sorted(wanted.items())
        if _canonical(value, dtype) != _canonical(found.get(option), dtype)
    ]


def refuse_changed_service(
    differences: Iterable[Difference], directory: Path, reason: Reason = OVERRIDDEN
) -> None:
    """Refuses an engine that would serve otherwise than the recipe and the plan said.

    Raises:
        CompileError: Lists the options.
    """
    serious = [difference for difference in differences if difference.changes_service]
    if serious:
        raise CompileError(
            f"the engine is not the one that was asked for: {'; '.join(map(str, serious))}",
            where=str(directory / "config.json"),
            why=reason.why,
            fix=reason.fix,
        )


def checkpoint_digest(checkpoint: Path) -> str:
    """Returns the digest of a checkpoint: its artifact's, or else one over its files."""
    if (checkpoint / ARTIFACT_MANIFEST).is_file():
        return str(read_manifest(checkpoint)["digest"])
    return digest_of({name: file_digest(checkpoint / name) for name in files_below(checkpoint)})


def write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes ``engine.json``: everything the engine is bound to."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=1, sort_keys=True, ensure_ascii=False)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def read_engine_manifest(directory: Path) -> dict[str, Any]:
    """Reads ``engine.json``.

    Raises:
        CompileError: It is missing or not of this version.
    """
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"schema {manifest['schema']}")
        container = manifest.get("container") or {}
        if not isinstance(container, dict) or not isinstance(container.get("image", ""), str):
            raise TypeError("its container is no object with the name of an image")
        if not isinstance(manifest.get("key") or {}, dict):
            raise TypeError("its key is no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompileError(
            "there is no readable engine.json",
            where=str(path),
            why=str(error),
            fix="Compile again; an engine of unknown origin is not served",
        ) from error
    return dict(manifest)


def rank_files(directory: Path) -> list[str]:
    """Lists the engine files of a directory, whatever its ``config.json`` says."""
    return sorted(path.name for path in directory.glob("rank*.engine"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _canonical(value: Any, dtype: object) -> Any:
    """One spelling of a value: upstream writes a plugin's ``auto`` as such or as the dtype."""
    if value == "auto":
        return dtype if dtype is not None else value
    return value.lower() if isinstance(value, str) else value


def _show(value: object) -> str:
    return json.dumps(value)
