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
# Warnings that change what the engine does; the rest is only in build.log.
TELLING = re.compile(
    r"\[W\].*(is disabled|not required tensors|clipping|Overriding"
    r"|specifying to|accuracy might be affected|larger than 16384|KV [Cc]ache)"
)
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
        self.warnings: list[str] = []

    def __call__(self, line: str) -> None:
        """Takes one line of the log."""
        if image := FETCHING.search(line):
            self._progress.note(f"fetching {image[1]}, which is many gigabytes")
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

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self._progress.note(f"trtllm-build: {text}")
