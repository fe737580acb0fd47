"""Validates a Triton model repository without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError
from pipeline.targets.tensorrt.serve.backend import BACKEND, BATCHING, MANDATORY, local_path
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.triton.checks import check_config, read_config
from pipeline.triton.ensembles import check_ensemble
from pipeline.triton.tensors import ENGINE

# The one tokenizer file that every text model needs; the others are optional.
TOKENIZER_FILE = "tokenizer.json"


def problems(repository: Path) -> list[str]:
    """Everything wrong with a repository, one sentence each, prefixed with the file it concerns.

    Args:
        repository: The directory that holds one folder per model.
    """
    try:
        folders = sorted(path for path in repository.iterdir() if path.is_dir())
    except OSError as error:
        return [f"the repository cannot be read: {error.strerror}"]
    if not folders:
        return ["there is no model folder in it"]
    found: list[str] = []
    models: dict[str, proto.ModelConfig] = {}
    for folder in folders:
        place = f"{folder.name}/config.pbtxt"
        if not (folder / "config.pbtxt").is_file():
            found.append(f"{place} is missing")
            continue
        config, text_problems = read_config(folder / "config.pbtxt")
        found += [f"{place}:{problem}" for problem in text_problems]
        if config is not None:
            models[folder.name] = config
            found += [f"{place}: {problem}" for problem in check_config(config, folder)]
    for name, config in models.items():
        place = f"{name}/config.pbtxt"
        if config.platform == "ensemble":
            found += [f"{place}: {problem}" for problem in check_ensemble(config, models)]
        found += [f"{place}: {problem}" for problem in _tokenizer(repository, config)]
    if ENGINE in models:
        found += list(_engine(repository, models))
    return found


def check_repository(repository: Path) -> None:
    """Raises when a repository would not load or would not do what its clients expect.

    Raises:
        RepositoryError: Listing every problem found.
    """
    found = problems(repository)
    if found:
        count = "one problem" if len(found) == 1 else f"{len(found)} problems"
        raise RepositoryError(
            f"the Triton repository has {count}",
            where=str(repository),
            why="; ".join(found),
            fix="Write it again with trtllm-pipeline run",
        )


def _parameter(config: proto.ModelConfig, name: str) -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else ""


def _tokenizer(repository: Path, config: proto.ModelConfig) -> Iterator[str]:
    value = _parameter(config, "tokenizer_dir")
    if not value:
        return
    _content, problem = _read_json(local_path(repository, value) / TOKENIZER_FILE)
    if problem:
        yield f"parameter tokenizer_dir: {value}/{TOKENIZER_FILE} {problem}"


def _engine(repository: Path, models: dict[str, proto.ModelConfig]) -> Iterator[str]:
    place = f"{ENGINE}/config.pbtxt"
    value = _parameter(models[ENGINE], "gpt_model_path")
    if not value:
        yield f"{place}: the parameter gpt_model_path is missing; it names the engine's folder"
        return
    directory = local_path(repository, value)
    if not directory.is_dir():
        yield f"{place}: parameter gpt_model_path: {value} is not a folder"
        return
    content, problem = _read_json(directory / "config.json")
    if problem:
        yield f"{value}/config.json {problem}"
        return
    if models[ENGINE].backend == BACKEND:
        yield from _native(models[ENGINE], directory, content)
    else:
        for name in _engine_files(content):
            if not (directory / name).is_file():
                yield f"{value}/{name} is missing"
    size = (content.get("build_config") or {}).get("max_batch_size")
    if not isinstance(size, int):
        yield f"{value}/config.json does not have build_config.max_batch_size"
        return
    for name, config in models.items():
        if config.max_batch_size > size:
            yield (
                f"{name}/config.pbtxt: max_batch_size {config.max_batch_size} is larger than the "
                f"{size} sequences the engine was built for"
            )


def _engine_files(config: dict[str, Any]) -> tuple[str, ...]:
    if config.get("target") == "openvino":
        return ("openvino_model.xml", "openvino_model.bin")
    mapping = (config.get("pretrained_config") or {}).get("mapping") or {}
    return tuple(f"rank{rank}.engine" for rank in range(int(mapping.get("world_size", 1))))


def _native(config: proto.ModelConfig, directory: Path, content: dict[str, Any]) -> Iterator[str]:
    """What the C++ backend would trip over, or correct without saying so."""
    place, value = f"{ENGINE}/config.pbtxt", _parameter(config, "gpt_model_path")
    if not PurePosixPath(value).is_absolute():
        yield (
            f"{place}: parameter gpt_model_path: {value} is relative; the C++ backend looks for it "
            "below the directory it was started in"
        )
    for name in MANDATORY:
        if name not in config.parameters:
            yield f"{place}: the parameter {name} is missing; without it the backend does not load"
    batching = _parameter(config, "gpt_model_type")
    if batching not in BATCHING:
        yield f"{place}: parameter gpt_model_type is {batching!r}, not {BATCHING[0]}"
    try:
        engine = TrtEngine.from_config(content)
    except RepositoryError as error:
        yield f"{value}/config.json: {error.what}: {error.why}"
        return
    yield from (f"{value}/config.json: {problem}" for problem in engine.problems())
    present = {path.name for path in directory.glob("rank*.engine")}
    for name in engine.rank_files:
        if name not in present:
            yield f"{value}/{name} is missing"
    for name in sorted(present - set(engine.rank_files)):
        yield f"{value}/{name} is not one of the engine's {engine.world_size} ranks"
    beams = _parameter(config, "max_beam_width")
    if not beams.isdecimal() or not 1 <= int(beams) <= engine.max_beam_width:
        yield (
            f"{place}: parameter max_beam_width is {beams!r}; the engine was built for 1 to "
            f"{engine.max_beam_width}"
        )
    for name, obstacle in (
        ("enable_kv_cache_reuse", engine.kv_reuse_obstacle()),
        ("enable_chunked_context", engine.chunked_context_obstacle()),
    ):
        if obstacle and _parameter(config, name) != "false":
            yield f"{place}: parameter {name} must be false: {obstacle}"


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a file, and what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, "is missing"
    except (OSError, ValueError) as error:
        return {}, f"cannot be read: {error}"
    if not isinstance(content, dict):
        return {}, "is not a JSON object"
    return content, ""
