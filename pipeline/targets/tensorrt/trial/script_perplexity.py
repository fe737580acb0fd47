"""Measures the perplexity of a TensorRT-LLM engine on windows of tokens.

A script for the environment in which the engine runs: it needs PyTorch and TensorRT-LLM and nothing
of this package, so that it also runs in the pinned container. It was written against the documented
return shapes of ``ModelRunnerCpp`` and is tested with a stand-in for them; it has not run on a GPU.

The engine must gather context logits, which is a build option of an engine of its own: such an
engine reuses no KV blocks, and one that does reuse them returns fewer logits than tokens. Both the
number of logits and their being there are therefore checked for every window.

    python script_perplexity.py REQUEST.json RESULT.json

The request holds ``engine`` (directory), ``windows`` (lists of token ids), ``end_id`` and
``pad_id``. The result holds ``perplexity``, ``tokens`` (scored; the first of each window is context
only), ``nll`` (sum, in nats), ``seconds``, and ``by_window``, a list of ``tokens``, ``nll`` and
``losses``, those of its single tokens. An engine of several ranks runs under ``mpirun``; rank 0
writes the result.
"""

from __future__ import annotations

import json
import math
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
    """Scores every window.

    Args:
        request: See the module.

    Returns:
        See the module; None on ranks other than 0.

    Raises:
        ValueError: The engine cannot score these windows, or returned other logits than it should.
    """
    import tensorrt_llm
    from tensorrt_llm.runtime import ModelRunnerCpp

    engine, windows = Path(request["engine"]), request["windows"]
    config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    longest = max(map(len, windows))
    check_engine(config["build_config"], longest)
    rank = tensorrt_llm.mpi_rank()
    started = time.monotonic()
    runner = ModelRunnerCpp.from_dir(
        str(engine),
        rank=rank,
        max_batch_size=1,
        max_input_len=longest,
        max_output_len=1,
        kv_cache_free_gpu_memory_fraction=KV_CACHE_FRACTION,
        kv_cache_enable_block_reuse=False,
        enable_chunked_context=False,
    )
    vocabulary = config["pretrained_config"]["vocab_size"]
    scores = []
    for number, window in enumerate(windows):
        logits = _context_logits(runner, window, request)
        if logits is None:
            continue
        scores.append(_score(logits, window, vocabulary, number))
    if rank != 0:
        return None
    tokens = sum(map(len, scores))
    nll = math.fsum(loss for losses in scores for loss in losses)
    return {
        "perplexity": math.exp(nll / tokens),
        "tokens": tokens,
        "nll": nll,
        "seconds": round(time.monotonic() - started, 3),
        "by_window": [
            {"tokens": len(losses), "nll": math.fsum(losses), "losses": losses} for losses in scores
        ],
    }


def check_engine(build_config: dict[str, Any], longest: int) -> None:
    """Checks that an engine can score windows.

    Args:
        build_config: Of the engine's ``config.json``.
        longest: Tokens of the longest window.

    Raises:
        ValueError: It gathers no context logits, or the window is too long for it.
    """
    if not build_config["gather_context_logits"]:
        raise ValueError("the engine was built without --gather_context_logits")
    # One new token is generated, because a request for none is refused.
    if longest + 1 > build_config["max_seq_len"]:
        raise ValueError(
            f"a window of {longest} tokens does not fit max_seq_len {build_config['max_seq_len']}"
        )
    if longest > build_config["max_num_tokens"]:
        raise ValueError(
            f"a window of {longest} tokens does not fit max_num_tokens "
            f"{build_config['max_num_tokens']}, and chunked context is off"
        )


def _context_logits(runner: Any, window: list[int], request: dict[str, Any]) -> Any:
    """Logits [tokens, padded vocabulary]; None on ranks other than 0, which get no output."""
    import torch

    outputs = runner.generate(
        [torch.tensor(window, dtype=torch.int32)],
        max_new_tokens=1,
        end_id=request["end_id"],
        pad_id=request["pad_id"],
        top_k=1,
        return_dict=True,
    )
    return outputs["context_logits"][0] if outputs else None


def _score(logits: Any, window: list[int], vocabulary: int, number: int) -> list[float]:
    """Negative log-likelihoods of the window's tokens but the first."""
    import torch

    if logits.ndim != 2 or logits.shape[0] != len(window) or logits.shape[1] < vocabulary:
        raise ValueError(
            f"window {number} of {len(window)} tokens got logits of shape {tuple(logits.shape)}"
        )
    # The vocabulary is padded to the number of ranks; padding must not share in the softmax.
    logits = logits[:, :vocabulary].float()
    if not bool(logits.isfinite().all()):
        raise ValueError(f"window {number} got logits that are not finite")
    if bool((logits == 0).all(dim=1).any()):
        raise ValueError(
            f"window {number} got positions without logits, as KV cache reuse leaves them"
        )
    targets = torch.tensor(window[1:], dtype=torch.long, device=logits.device)
    losses = torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="none")
    return [float(loss) for loss in losses.double()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
