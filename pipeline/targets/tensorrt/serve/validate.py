"""Checks an engine and its model in a repository as Triton's C++ backend would meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import RepositoryError
from pipeline.recipe.tensorrt import max_draft_len
from pipeline.targets.tensorrt.serve.adapters import missing_files
from pipeline.targets.tensorrt.serve.backend import BACKEND, BATCHING, MANDATORY
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine

LOOKAHEAD_SIZES = ("window_size", "ngram_size", "verification_set_size")

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
    place, value = f"{config.name}/config.pbtxt", _parameter(config, "gpt_model_path")
    if config.backend != BACKEND:
        yield f"{place}: the backend is {config.backend!r}, not {BACKEND}"
    if not PurePosixPath(value).is_absolute():
        yield (
            f"{place}: parameter gpt_model_path: {value} is relative; the C++ backend looks for it "
            "below the directory it was started in"
        )
    for name in MANDATORY:
        if name not in config.parameters:
            yield f"{place}: the parameter {name} is missing; without it the backend does not load"
    yield from _guided_decoding(config, directory.parent)
    if _parameter(config, "lora_prefetch_dir"):
        yield from (f"{place}: parameter {problem}" for problem in missing_files(directory.parent))
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
    yield from _lookahead(config, engine)
    if engine.takes_guesses and _parameter(config, "enable_kv_cache_reuse") != "true":
        yield (
            f"{place}: parameter enable_kv_cache_reuse must be true: the engine takes the guesses "
            "of a draft model, and the backend loads none of these without the reuse"
        )
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


def _guided_decoding(config: proto.ModelConfig, folder: Path) -> Iterator[str]:
    """The rules of ``getGuidedDecodingConfigFromParams``, which loads no model that breaks one."""
    place, name = f"{config.name}/config.pbtxt", "xgrammar_tokenizer_info_path"
    guided, path = _parameter(config, "guided_decoding_backend"), _parameter(config, name)
    if bool(guided) != bool(path):
        yield f"{place}: guided_decoding_backend and {name} go together; one of them is empty"
    if guided not in ("", "xgrammar"):
        yield f"{place}: parameter guided_decoding_backend is {guided!r}, not xgrammar"
    if path and not (folder / PurePosixPath(path).name).is_file():
        yield f"{place}: parameter {name}: there is no {path}"


def _lookahead(config: proto.ModelConfig, engine: TrtEngine) -> Iterator[str]:
    """The rule of ``setupSpeculativeDecodingModule``: what is guessed must fit the engine."""
    place, mode = f"{config.name}/config.pbtxt", _parameter(config, "decoding_mode")
    if (mode == "lookahead") != engine.lookahead:
        built = "was" if engine.lookahead else "was not"
        yield (
            f"{place}: parameter decoding_mode is {mode!r}, and the engine {built} built for "
            "lookahead decoding"
        )
    elif engine.lookahead:
        sizes = [_parameter(config, f"lookahead_{name}") for name in LOOKAHEAD_SIZES]
        if not all(size.isdecimal() for size in sizes):
            yield f"{place}: lookahead decoding needs the three sizes lookahead_*"
        elif (draft := max_draft_len(*map(int, sizes))) > engine.max_draft_len:
            yield (
                f"{place}: lookahead decoding of {', '.join(sizes)} guesses {draft} tokens, and "
                f"the engine was built for {engine.max_draft_len}"
            )


def _parameter(config: proto.ModelConfig, name: str) -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else ""
