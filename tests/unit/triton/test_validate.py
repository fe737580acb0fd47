"""Every check of the validator, each with a repository that fails it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError
from pipeline.targets import get_target
from pipeline.triton import validate
from tests.unit.triton.demo import ENGINE, write_repository

_ENGINE_PROBLEMS = get_target("openvino").engine_problems
check_repository = partial(validate.check_repository, engine_problems=_ENGINE_PROBLEMS)
problems = partial(validate.problems, engine_problems=_ENGINE_PROBLEMS)

Change = Callable[[proto.ModelConfig], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("pristine") / "repository")


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


def change(repository: Path, model: str, edit: Change) -> None:
    path = repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), proto.ModelConfig())
    edit(config)
    path.write_text(text_format.MessageToString(config))


def tensor(tensors: object, name: str) -> object:
    return next(t for t in tensors if t.name == name)  # type: ignore[attr-defined]


def step(config: proto.ModelConfig, model: str) -> object:
    return next(s for s in config.ensemble_scheduling.step if s.model_name == model)


def test_the_generated_repository_is_accepted(repository: Path) -> None:
    assert problems(repository) == []
    check_repository(repository)


def _duplicate(c: proto.ModelConfig) -> None:
    c.input.add().CopyFrom(c.input[0])


def _set_dims(name: str, *dims: int) -> Change:
    def edit(c: proto.ModelConfig) -> None:
        target = tensor([*c.input, *c.output], name)
        del target.dims[:]  # type: ignore[attr-defined]
        target.dims.extend(dims)  # type: ignore[attr-defined]

    return edit


def _set_type(name: str, data_type: int) -> Change:
    def edit(c: proto.ModelConfig) -> None:
        tensor([*c.input, *c.output], name).data_type = data_type  # type: ignore[attr-defined]

    return edit


def _edit(expression: str) -> Change:
    """An edit given as statements about ``c``."""

    def edit(c: proto.ModelConfig) -> None:
        exec(expression, {"c": c, "step": step, "tensor": tensor})

    return edit


CONFIG_CASES: list[tuple[str, Change, str]] = [
    ("preprocessing", _edit("c.name = 'other'"), r"name is 'other', but the folder is called"),
    ("preprocessing", _edit("c.max_batch_size = -3"), r"max_batch_size is -3; it must be 0"),
    ("preprocessing", _edit("c.backend = ''"), r"neither a backend nor platform: ensemble"),
    ("preprocessing", _edit("c.instance_group[0].count = 0"), r"instance_group has count 0"),
    ("preprocessing", _edit("del c.output[:]"), r"preprocessing/config.pbtxt: there is no output"),
    ("preprocessing", _duplicate, r"input QUERY is declared 2 times"),
    ("preprocessing", _edit("c.input[0].name = ''"), r"input \(no name\) needs a name"),
    ("preprocessing", _set_type("QUERY", 0), r"input QUERY has no data_type"),
    ("preprocessing", _set_dims("QUERY"), r"input QUERY has no dims"),
    ("preprocessing", _set_dims("QUERY", 0), r"input QUERY has dimension 0;"),
    ("preprocessing", _set_dims("QUERY", -5), r"input QUERY has dimension -5;"),
    ("tensorrt_llm", _set_dims("input_lengths", 2), r"reshaped from \[2\] to \[\]"),
    (
        "tensorrt_llm",
        _edit("c.ClearField('model_transaction_policy')"),
        r"bls/config.pbtxt: it calls tensorrt_llm as one that may answer many .* that answers once",
    ),
    (
        "postprocessing",
        _edit("c.model_transaction_policy.decoupled = True"),
        r"postprocessing/config.pbtxt: it is decoupled, but answers every request exactly once",
    ),
    (
        "tensorrt_llm_bls",
        _edit("del c.input[2]"),
        r"inputs of the wire contract are missing: max_t",
    ),
    (
        "tensorrt_llm_bls",
        _edit("c.input.add(name='max_new_tokens', data_type=8, dims=[1])"),
        r"inputs are not in the wire contract: max_new_tokens",
    ),
    (
        "tensorrt_llm",
        _edit("c.backend = 'tensorrtllm'"),
        r"inputs are not in the wire contract: return_prompt_log_probs",
    ),
    (
        "tensorrt_llm",
        _edit("del c.output[-2]"),
        r"outputs of the wire contract are missing: prompt_log_probs",
    ),
    (
        "tensorrt_llm_bls",
        _set_type("seed", proto.TYPE_INT64),
        r"input seed is TYPE_INT64 \[1\], the wire contract says TYPE_UINT64 \[1\]",
    ),
    ("tensorrt_llm_bls", _edit("c.input[0].optional = True"), r"text_input must be required"),
    # The ensemble's wiring.
    (
        "ensemble",
        _edit("c.ClearField('ensemble_scheduling')"),
        r"there is no ensemble_scheduling step",
    ),
    (
        "ensemble",
        _edit("c.ensemble_scheduling.step[2].model_name = 'detokenizer'"),
        r"step detokenizer is not a model of this repository",
    ),
    (
        "postprocessing",
        _edit("c.max_batch_size = 8"),
        r"max_batch_size 32 is larger than the 8 of its step postprocessing",
    ),
    (
        "ensemble",
        _edit("step(c, 'preprocessing').output_map['TOKENS'] = '_TOKENS'"),
        r"step preprocessing maps output TOKENS, which the model does not have",
    ),
    (
        "ensemble",
        _edit("step(c, 'preprocessing').output_map['OUT_PAD_ID'] = '_INPUT_ID'"),
        r"tensor _INPUT_ID is produced twice: by output INPUT_ID of step preprocessing",
    ),
    (
        "ensemble",
        _edit("step(c, 'tensorrt_llm').input_map['top_k'] = 'top_k'"),
        r"step tensorrt_llm maps input top_k, which the model does not have",
    ),
    (
        "ensemble",
        _edit("step(c, 'tensorrt_llm').input_map['input_ids'] = '_IDS'"),
        r"input input_ids of step tensorrt_llm reads _IDS, which nothing produces",
    ),
    (
        "ensemble",
        _edit("step(c, 'tensorrt_llm').input_map['seed'] = 'top_p'"),
        r"input top_p is TYPE_FP32 but input seed of step tensorrt_llm is TYPE_UINT64",
    ),
    (
        "ensemble",
        _edit("step(c, 'tensorrt_llm').input_map['input_lengths'] = '_BAD_WORDS_IDS'"),
        r"BAD_WORDS_IDS of step preprocessing has dims \[2, -1\] but .* has \[1\]",
    ),
    (
        "preprocessing",
        _edit("tensor(c.input, 'REQUEST_OUTPUT_LEN').optional = False"),
        r"REQUEST_OUTPUT_LEN of step preprocessing is required but reads the optional input max_to",
    ),
    (
        "ensemble",
        _edit("del step(c, 'postprocessing').input_map['SEQUENCE_LENGTH']"),
        r"required input SEQUENCE_LENGTH of step postprocessing is not fed",
    ),
    (
        "ensemble",
        _edit("del step(c, 'postprocessing').output_map['OUTPUT']"),
        r"output text_output is not produced by any step",
    ),
    (
        "ensemble",
        _set_type("cum_log_probs", proto.TYPE_FP16),
        r"cum_log_probs of step tensorrt_llm is TYPE_FP32 but output cum_log_probs is TYPE_FP16",
    ),
    (
        "ensemble",
        _edit("del step(c, 'tensorrt_llm').input_map['return_log_probs']"),
        r"input return_log_probs is not used by any step",
    ),
    (
        "ensemble",
        _edit("step(c, 'preprocessing').input_map['END_ID'] = '_SEQUENCE_LENGTH'"),
        r"the steps preprocessing, tensorrt_llm, postprocessing wait for each other's outputs",
    ),
    (
        "tensorrt_llm_bls",
        _edit("c.ClearField('model_transaction_policy')"),
        r"bls/config.pbtxt: it calls tensorrt_llm as one that answers once, but that may answer ma",
    ),
    (
        "ensemble",
        _edit("c.ensemble_scheduling.step[1].model_name = 'postprocessing'"),
        r"ensemble/config.pbtxt: it has a streaming input but none of its steps is decoupled",
    ),
    # What the files must hold.
    (
        "preprocessing",
        _edit("c.max_batch_size = 64"),
        r"preprocessing/config.pbtxt: max_batch_size 64 is larger than the 32 sequences",
    ),
    (
        "tensorrt_llm",
        _edit("del c.parameters['gpt_model_path']"),
        r"the parameter gpt_model_path is missing",
    ),
    (
        "tensorrt_llm",
        _edit("c.parameters['gpt_model_path'].string_value = 'engines'"),
        r"gpt_model_path: engines is not a folder",
    ),
    (
        "postprocessing",
        _edit("c.parameters['tokenizer_dir'].string_value = 'tok'"),
        r"tokenizer_dir: tok/tokenizer.json is missing",
    ),
]


@pytest.mark.parametrize(("model", "edit", "expected"), CONFIG_CASES, ids=lambda v: str(v)[:40])
def test_wrong_configuration(repository: Path, model: str, edit: Change, expected: str) -> None:
    change(repository, model, edit)
    with pytest.raises(RepositoryError, match="the Triton repository has"):
        check_repository(repository)
    assert any(re.search(expected, problem) for problem in problems(repository)), problems(
        repository
    )


TEXT_CASES = [
    ("max_batch_size: 32", "max_batch_size: ${size}", r":3:17: the template variable \$\{size\}"),
    ('"python"', '"${triton_backend}"', r"the template variable \$\{triton_backend\} is not fill"),
    ("backend:", "backnd:", r'config.pbtxt:\d+:\d+ : .*no field named "backnd"'),
    ("TYPE_STRING", "TYPE_TEXT", r"config.pbtxt:\d+:\d+ : .*TYPE_TEXT"),
    ("dims: 1", 'dims: "one"', r"config.pbtxt:\d+:\d+ : .*Couldn't parse integer"),
]


@pytest.mark.parametrize(("old", "new", "expected"), TEXT_CASES)
def test_text_that_does_not_parse(repository: Path, old: str, new: str, expected: str) -> None:
    path = repository / "preprocessing/config.pbtxt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RepositoryError, match=expected):
        check_repository(repository)


def test_truncated_text(repository: Path) -> None:
    path = repository / "ensemble/config.pbtxt"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(RepositoryError, match=r"ensemble/config.pbtxt:\d+:\d+ : "):
        check_repository(repository)


def test_bytes_that_are_not_text(repository: Path) -> None:
    (repository / "ensemble/config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"ensemble/config\.pbtxt:cannot be read"):
        check_repository(repository)


def _engine_json(content: object) -> Callable[[Path], object]:
    return lambda root: (root / "tensorrt_llm/1/engine/config.json").write_text(json.dumps(content))


FILE_CASES: list[tuple[Callable[[Path], object], str]] = [
    (lambda r: (r / "preprocessing/1/model.py").unlink(), "1/model.py is missing; the python back"),
    (
        lambda r: shutil.rmtree(r / "ensemble/1"),
        "ensemble/config.pbtxt: there is no version folder",
    ),
    (lambda r: (r / "ensemble/config.pbtxt").unlink(), "ensemble/config.pbtxt is missing"),
    (
        lambda r: (r / "preprocessing/1/tokenizer/tokenizer.json").unlink(),
        "preprocessing/1/tokenizer/tokenizer.json is missing",
    ),
    (
        lambda r: (r / "preprocessing/1/tokenizer/tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read: Expecting",
    ),
    (
        lambda r: (r / "tensorrt_llm/1/engine/openvino_model.bin").unlink(),
        "tensorrt_llm/1/engine/openvino_model.bin is missing",
    ),
    (_engine_json([]), "engine/config.json is not a JSON object"),
    (_engine_json({"target": "openvino"}), "does not have build_config.max_batch_size"),
    (
        _engine_json({k: v for k, v in ENGINE.items() if k != "target"}),
        "is not that of an engine for the CPU",
    ),
]


@pytest.mark.parametrize(("damage", "expected"), FILE_CASES)
def test_wrong_files(repository: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(repository)
    with pytest.raises(RepositoryError, match=re.escape(expected)):
        check_repository(repository)


def test_not_a_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="There is no model folder in it"):
        check_repository(tmp_path)
    with pytest.raises(RepositoryError, match="cannot be read: No such file"):
        check_repository(tmp_path / "missing")


def test_all_problems_are_listed(repository: Path) -> None:
    (repository / "preprocessing/1/model.py").unlink()
    (repository / "postprocessing/1/model.py").unlink()
    with pytest.raises(RepositoryError, match="has 2 problems"):
        check_repository(repository)


@pytest.mark.parametrize("decoupled", [True, False, "both"])
def test_every_policy_makes_a_valid_repository(tmp_path: Path, decoupled: bool | str) -> None:
    assert problems(write_repository(tmp_path / "repository", decoupled=decoupled)) == []


def test_a_twin_that_takes_its_engine_for_one_that_answers_once(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", decoupled="both")
    change(repository, "tensorrt_llm_bls_unary", lambda c: c.parameters.clear())
    (problem,) = problems(repository)
    assert problem.startswith("tensorrt_llm_bls_unary/config.pbtxt: it calls tensorrt_llm as one")
    assert problem.endswith(
        "answers once, but that may answer many times (model_transaction_policy)"
    )
