"""An environment of another Python, with a module ``vllm`` of a few lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.targets.vllm.elsewhere import find_vllm

# What the script asks of vLLM: LLM, SamplingParams, and outputs as its documentation has them. Its
# model finds each token as likely as its number says, and goes on with the one behind the last.
STUB = """
import json, os, types
__version__ = "0.32.0"

class SamplingParams:
    def __init__(self, temperature, max_tokens, detokenize, prompt_logprobs=None, logprobs=None,
                 ignore_eos=False):
        self.__dict__.update(locals())

class LLM:
    def __init__(self, model, enforce_eager, enable_prefix_caching, **arguments):
        with open(os.path.join(os.path.dirname(__file__), "seen.json"), "w") as file:
            json.dump({"model": model, "arguments": arguments, "environ": dict(os.environ)}, file)
        %s

    def generate(self, prompts, sampling, use_tqdm):
        return [self.answer(prompt["prompt_token_ids"], sampling) for prompt in prompts]

    def answer(self, ids, sampling):
        entry = lambda token: {token: types.SimpleNamespace(logprob=-token / 8)}
        given = [None] + [entry(token) for token in ids[1:]] if sampling.prompt_logprobs else None
        new = [ids[-1] + 1 + index for index in range(sampling.max_tokens)]
        answer = types.SimpleNamespace(token_ids=new, logprobs=[entry(token) for token in new])
        return types.SimpleNamespace(prompt_logprobs=given, outputs=[answer])
"""


class Environment:
    """A Python that finds a module ``vllm``, and nothing else besides its standard library."""

    def __init__(self, folder: Path) -> None:
        self.site, self.python = folder / "site", folder / "python"
        self.site.mkdir()
        # A program of its own, as that of a virtual environment is.
        self.python.write_text(
            f'#!/bin/sh\nPYTHONPATH="{self.site}" exec {sys.executable} -S "$@"\n'
        )
        self.python.chmod(0o755)
        find_vllm.cache_clear()

    def install(self, starting: str = "pass") -> str:
        (self.site / "vllm.py").write_text(STUB % starting)
        return str(self.python)

    def seen(self) -> Any:
        return json.loads((self.site / "seen.json").read_text())
