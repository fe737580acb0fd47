"""Runs vLLM on a folder, in an environment that has it: the standard library and vLLM alone.

Started as ``python run_vllm.py JOB FOUND`` from a copy, so that no module beside it is taken for
one of vLLM's. ``JOB`` is JSON: ``arguments`` of ``vllm.LLM``, ``windows`` and ``prompts``, both
lists of token ids, and ``new_tokens``. ``FOUND`` gets JSON: ``vllm``, its version; ``losses``, for
each window the negative log-likelihoods of its tokens but the first; ``greedy``, for each prompt
``ids`` and their ``log_probs``; or ``error`` alone.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(job_path: str, found_path: str) -> int:
    """Does the job, writes what was found or why nothing was, and returns the exit code."""
    try:
        found = work(json.loads(Path(job_path).read_text(encoding="utf-8")))
    except BaseException as error:  # noqa: BLE001  whoever started this tells it
        found = {"error": f"{type(error).__name__}: {error}"}
    written = Path(f"{found_path}.part")
    written.write_text(json.dumps(found), encoding="utf-8")
    written.replace(found_path)
    return 1 if "error" in found else 0


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Loads the folder and asks for both."""
    import vllm  # type: ignore[import-not-found, unused-ignore]

    llm = vllm.LLM(enforce_eager=True, enable_prefix_caching=False, **job["arguments"])
    # One token is generated behind each window, for there is no request without.
    scoring = vllm.SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False
    )
    greedy = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=job["new_tokens"],
        logprobs=1,
        ignore_eos=True,
        detokenize=False,
    )
    losses = []
    for ids, output in zip(job["windows"], generate(llm, job["windows"], scoring), strict=True):
        given = output.prompt_logprobs[1:]
        losses.append([-entry[token].logprob for token, entry in zip(ids[1:], given, strict=True)])
    answers = []
    for output in generate(llm, job["prompts"], greedy):
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        log_probs = [
            entry[token].logprob for token, entry in zip(ids, answer.logprobs, strict=True)
        ]
        answers.append({"ids": ids, "log_probs": log_probs})
    return {"vllm": vllm.__version__, "losses": losses, "greedy": answers}


def generate(llm: Any, rows: list[list[int]], sampling: Any) -> list[Any]:
    """Asks for answers to token ids."""
    if not rows:
        return []
    prompts = [{"prompt_token_ids": row} for row in rows]
    return list(llm.generate(prompts, sampling, use_tqdm=False))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
