"""Generates greedily on a TensorRT-LLM engine and checks what comes back.

A script for the environment in which the engine runs: it needs PyTorch and TensorRT-LLM and nothing
of this package, so that it also runs in the pinned container. It was written against the documented
return shapes of ``ModelRunnerCpp`` and is tested with a stand-in for them; it has not run on a GPU.

    python script_smoke.py REQUEST.json RESULT.json

The request holds ``engine`` (directory), ``prompts`` (lists of token ids), ``max_new_tokens``,
``end_id``, ``pad_id`` and, for an engine of lookahead decoding, ``lookahead`` (its three sizes).
The result holds ``new_tokens`` (lists of token ids without the prompt, one per prompt), ``seconds``
and ``problems`` (sentences; an empty list is a pass). An engine of several ranks runs under
``mpirun``; rank 0 writes the result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

KV_CACHE_FRACTION = 0.5


def main(arguments: list[str]) -> int:
    """Runs the script."""
    request_path, result_path = map(Path, arguments)
    result = run(json.loads(request_path.read_text(encoding="utf-8")))
    if result is not None:
        result_path.write_text(json.dumps(result), encoding="utf-8")
    return 0


def run(request: dict[str, Any]) -> dict[str, Any] | None:
    """Generates every prompt twice.

    Args:
        request: See the module.

    Returns:
        See the module; None on ranks other than 0.

    Raises:
        ValueError: A prompt does not fit the engine.
    """
    import tensorrt_llm
    from tensorrt_llm.runtime import ModelRunnerCpp

    engine, prompts = Path(request["engine"]), request["prompts"]
    config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    limit = config["build_config"]["max_seq_len"]
    longest = max(map(len, prompts))
    if longest + request["max_new_tokens"] > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {request['max_new_tokens']} new ones do not fit the "
            f"engine's max_seq_len {limit}"
        )
    rank = tensorrt_llm.mpi_rank()
    started = time.monotonic()
    runner = ModelRunnerCpp.from_dir(
        str(engine),
        rank=rank,
        max_batch_size=1,
        max_input_len=longest,
        max_output_len=request["max_new_tokens"],
        kv_cache_free_gpu_memory_fraction=KV_CACHE_FRACTION,
        kv_cache_enable_block_reuse=False,
        enable_chunked_context=False,
        lookahead_config=request.get("lookahead"),
    )
    problems: list[str] = []
    vocabulary = config["pretrained_config"]["vocab_size"]
    generated = []
    for number, prompt in enumerate(prompts):
        first = _generate(runner, prompt, request)
        second = _generate(runner, prompt, request)
        if first is None or second is None:
            continue
        if rank != 0:
            continue
        problems += _problems(number, prompt, first, vocabulary)
        if first != second:
            problems.append(f"prompt {number} gave two different greedy answers")
        generated.append(first[len(prompt) :])
    if rank != 0:
        return None
    if len(generated) != len(prompts):
        problems.append(f"{len(generated)} of {len(prompts)} prompts were answered")
    return {
        "new_tokens": generated,
        "seconds": round(time.monotonic() - started, 3),
        "problems": problems,
    }


def _generate(runner: Any, prompt: list[int], request: dict[str, Any]) -> list[int] | None:
    """Prompt and generated tokens; None on ranks other than 0, which get no output."""
    import torch

    outputs = runner.generate(
        [torch.tensor(prompt, dtype=torch.int32)],
        max_new_tokens=request["max_new_tokens"],
        end_id=request["end_id"],
        pad_id=request["pad_id"],
        top_k=1,
        return_dict=True,
        output_sequence_lengths=True,
    )
    if not outputs:
        return None
    # output_ids: [batch, beams, max_seq_len], prompt included, padded with end_id.
    length = int(outputs["sequence_lengths"][0][0])
    return [int(token) for token in outputs["output_ids"][0][0][:length]]


def _problems(number: int, prompt: list[int], tokens: list[int], vocabulary: int) -> list[str]:
    problems = []
    if tokens[: len(prompt)] != prompt:
        problems.append(f"the answer to prompt {number} does not begin with the prompt")
    if len(tokens) <= len(prompt):
        problems.append(f"prompt {number} got no new token")
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    if outside:
        problems.append(
            f"prompt {number} got token {outside[0]}, outside the vocabulary of {vocabulary}"
        )
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
