"""What a running ``trtllm-build`` is doing, read from its log."""

from __future__ import annotations

import re
from collections import Counter

from pipeline.progress import Progress, Task

# What each step of a rank's build ends with, and about how much of the time it takes. TensorRT
# itself reports nothing while it times kernels, which is most of it.
MILESTONES = (
    (re.compile(r"Set (PluginConfig\.)?nccl_plugin to"), 0.05),
    (re.compile(r"Total time of constructing network from module object"), 0.10),
    (re.compile(r"Build TensorRT engine "), 0.05),
    (re.compile(r"Engine generation completed in"), 0.60),
    (re.compile(r"Total time of building (?!all engines)"), 0.05),
    (re.compile(r"Serializing engine to "), 0.05),
    (re.compile(r"Engine serialized\. Total time"), 0.10),
)
# Warnings that change what the engine does; the rest is only in build.log. paged_state is Mamba's:
# update_kv_cache_type of tensorrt_llm/builder.py switches it off in every build of another model.
TELLING = re.compile(
    r"\[W\].*(is disabled|not required tensors|clipping|Overriding (?!paged_state)"
    r"|specifying to|accuracy might be affected|larger than 16384|KV [Cc]ache)"
)
UNREQUIRED = re.compile(r"Provided but not required tensors: \{(.*)\}")
MERGED = ".activation_scaling_factor"
NO_GEMM = re.compile(r"(Have not found any valid GEMM config for shape) \(m=\d+, (n=\d+, k=\d+)\)")
FETCHING = re.compile(r"Unable to find image '(\S+)' locally")
_PREFIX = re.compile(r"^(\[[^\]]*\]\s*)*")


class BuildLog:
    """Advances a task and notes telling warnings as lines come.

    Args:
        progress: Where warnings are noted.
        task: A task whose total is the number of ranks.
        ranks: How many ranks are built.
    """

    def __init__(self, progress: Progress, task: Task, ranks: int) -> None:
        self._progress, self._task, self._ranks = progress, task, ranks
        self._seen: Counter[int] = Counter()
        self._explained = False
        self.warnings: list[str] = []

    def __call__(self, line: str) -> None:
        """Takes one line of the log."""
        if image := FETCHING.search(line):
            self._progress.note(f"fetching {image[1]}, which is many gigabytes")
            return
        if missing := NO_GEMM.search(line):
            # It comes once for every number of tokens; n counts four INT4 columns as one.
            self._warn(f"{missing[1]} ({missing[2]}); the engine may fail at its first token")
            return
        if (unrequired := UNREQUIRED.search(line)) and self._explain(unrequired[1]):
            return
        if TELLING.search(line):
            self._warn(_PREFIX.sub("", line).strip())
            return
        for number, (pattern, share) in enumerate(MILESTONES):
            if pattern.search(line):
                # The plugin options are logged once more by the command itself.
                if self._seen[number] < self._ranks:
                    self._seen[number] += 1
                    self._task.advance(share)
                return

    def _explain(self, names: str) -> bool:
        """Says that scales which the loader has merged into others are not lost.

        Returns:
            Whether there are no other tensors; those would change what the engine computes.
        """
        tensors = [name.strip(" '\"") for name in names.split(",")]
        if not all(name.endswith(MERGED) for name in tensors):
            return False
        if not self._explained:
            self._explained = True
            self._progress.note(
                f"trtllm-build calls {len(tensors)} activation scales not required, as it should: "
                "it has multiplied them into other scales"
            )
        return True

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self._progress.note(f"trtllm-build: {text}")
