"""Checks an engine and its model in a repository as Triton's C++ backend would meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import RepositoryError
from pipeline.targets.tensorrt.serve.backend import BATCHING, MANDATORY
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.triton.contract import CPP_BACKEND, ENGINE

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as proto


def engine_problems(
    config: proto.ModelConfig, directory: Path, content: Mapping[str, Any]
) -> Iterator[str]:
    """Names what the C++ backend would trip over, or correct without saying so.

    Args:
        config: ``config.pbtxt`` of the engine model.
        directory: The engine directory in the repository.
        content: Its ``config.json``.
    """
    place, value = f"{ENGINE}/config.pbtxt", _parameter(config, "gpt_model_path")
    if config.backend != CPP_BACKEND:
        yield f"{place}: the backend is {config.backend!r}, not {CPP_BACKEND}"
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


def _parameter(config: proto.ModelConfig, name: str) -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else ""
