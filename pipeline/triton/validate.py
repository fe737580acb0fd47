"""Validates a Triton model repository without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError
from pipeline.reading.json_text import read_json
from pipeline.triton.checks import check_config, read_config
from pipeline.triton.ensembles import check_ensemble
from pipeline.triton.parameters import local_path
from pipeline.triton.tensors import BLS, BLS_UNARY, DRAFT, ENGINE

# The one tokenizer file that every text model needs; the others are optional.
TOKENIZER_FILE = "tokenizer.json"

EngineProblems = Callable[[proto.ModelConfig, Path, Mapping[str, Any]], Iterator[str]]
"""What a compile target finds wrong with its engine; see :class:`pipeline.targets.base.Target`."""


def problems(repository: Path, engine_problems: EngineProblems) -> list[str]:
    """Lists everything wrong with a repository, a sentence each, prefixed with the file concerned.

    Args:
        repository: The directory that holds one folder per model.
        engine_problems: The check of the target that compiled the engine.
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
        for name in (ENGINE, DRAFT):
            if name in models:
                found += list(_engine(repository, models, name, engine_problems))
        found += list(_policies(models))
    return found


def check_repository(repository: Path, engine_problems: EngineProblems) -> None:
    """Raises when a repository would not load or would not do what its clients expect.

    Args:
        repository: The directory that holds one folder per model.
        engine_problems: The check of the target that compiled the engine.

    Raises:
        RepositoryError: Listing every problem found.
    """
    found = problems(repository, engine_problems)
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


def _engine(
    repository: Path,
    models: dict[str, proto.ModelConfig],
    engine: str,
    engine_problems: EngineProblems,
) -> Iterator[str]:
    place = f"{engine}/config.pbtxt"
    value = _parameter(models[engine], "gpt_model_path")
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
    yield from engine_problems(models[engine], directory, content)
    size = (content.get("build_config") or {}).get("max_batch_size")
    if not isinstance(size, int):
        yield f"{value}/config.json does not have build_config.max_batch_size"
        return
    for name, config in models.items():
        if engine == DRAFT and name != DRAFT:
            continue  # they may be asked for more than the draft takes at a time
        if config.max_batch_size > size:
            yield (
                f"{name}/config.pbtxt: max_batch_size {config.max_batch_size} is larger than the "
                f"{size} sequences the engine was built for"
            )


def _policies(models: dict[str, proto.ModelConfig]) -> Iterator[str]:
    """A text model must call its engine by the engine's policy, or Triton refuses every call."""
    engine = models[ENGINE].model_transaction_policy.decoupled
    for name in (BLS, BLS_UNARY):
        if name not in models:
            continue
        own = models[name].model_transaction_policy.decoupled
        value = _parameter(models[name], "tensorrt_llm_decoupled")
        expects = value == "true" if value else own
        if expects != engine:
            yield (
                f"{name}/config.pbtxt: it calls {ENGINE} as one that "
                f"{_answers(expects)}, but that {_answers(engine)} (model_transaction_policy)"
            )
        elif own and not engine:
            yield f"{name}/config.pbtxt: it is decoupled, but {ENGINE} is not, so it cannot stream"
    if DRAFT in models and models[DRAFT].model_transaction_policy.decoupled != engine:
        yield (
            f"{DRAFT}/config.pbtxt: its model_transaction_policy is not that of {ENGINE}, by which "
            "it is called"
        )


def _answers(decoupled: bool) -> str:
    return "may answer many times" if decoupled else "answers once"


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a file, and what is wrong with the file."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}, "is missing"
    except (OSError, ValueError) as error:
        return {}, f"cannot be read: {error}"
    if not isinstance(content, dict):
        return {}, "is not a JSON object"
    return content, ""
