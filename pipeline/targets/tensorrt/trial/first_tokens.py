"""The first tokens of an engine that was just built: it is not published before it generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import CompileError
from pipeline.progress import Progress
from pipeline.recipe.tensorrt import LookaheadSection
from pipeline.targets.base import LOG_NAME
from pipeline.targets.tensorrt.build.engine import read_config, world_size
from pipeline.targets.tensorrt.build.timing_cache import keep_log, timing_folder
from pipeline.targets.tensorrt.environment import inspect_machine
from pipeline.targets.tensorrt.trial.run_script import NO_END, PAD, run_smoke

PROMPT_LENGTHS = (1, 8, 48)  # the last is longer than a KV block of 32 tokens
NEW_TOKENS = 16
# A prime: the ids are spread over any vocabulary. What they say does not matter.
STRIDE = 7919


def try_engine(
    engine: Path, progress: Progress, lookahead: LookaheadSection | None = None
) -> list[list[int]] | None:
    """Generates greedily on an engine in its workspace.

    Args:
        engine: An engine directory with its log.
        progress: Is told when the engine cannot be tried here.
        lookahead: What it was built for; its runtime needs the sizes.

    Returns:
        The new tokens of each prompt; None when there are fewer GPUs than ranks.

    Raises:
        CompileError: It generates nothing, ids outside the vocabulary, or another answer each time.
        StageError: It does not run.
    """
    config = read_config(engine)
    ranks, gpus = world_size(config), len(inspect_machine().gpus)
    if gpus < ranks:
        progress.note(
            f"the engine was not tried: its {ranks} ranks need a GPU each, and {gpus} can be used"
        )
        return None
    build = config["build_config"]
    room = build["max_seq_len"] - build.get("max_draft_len", 0)
    new_tokens = min(NEW_TOKENS, room // 2)
    longest = min(room - new_tokens, build["max_num_tokens"])
    prompts = smoke_prompts(config["pretrained_config"]["vocab_size"], longest)
    logs = timing_folder(engine)
    with progress.task("generating on the engine", 1) as task:
        result: dict[str, Any] = run_smoke(
            engine,
            prompts,
            logs,
            max_new_tokens=new_tokens,
            end_id=NO_END,
            pad_id=PAD,
            lookahead=lookahead.sizes if lookahead else None,
        )
        task.advance()
    if result["problems"]:
        kept = keep_log(engine / LOG_NAME, logs)
        raise CompileError(
            "the engine was built but does not generate as it should",
            where=str(kept),
            why="; ".join(result["problems"]),
            fix="Look for warnings in that log of the build; try with plugins at their defaults "
            "(compile.tensorrt.plugin_config), and report it with the recipe",
        )
    return [list(tokens) for tokens in result["new_tokens"]]


def smoke_prompts(vocab_size: int, longest: int) -> list[list[int]]:
    """Makes up prompts, which are the same for every engine of a vocabulary.

    Args:
        vocab_size: Ids are below it.
        longest: Tokens of the longest prompt, at most.

    Returns:
        A prompt's token ids for each of :data:`PROMPT_LENGTHS`.
    """
    return [
        [STRIDE * position % vocab_size for position in range(1, min(length, longest) + 1)]
        for length in PROMPT_LENGTHS
    ]
