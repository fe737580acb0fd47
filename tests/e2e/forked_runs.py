"""Runs recipes in forks of one process that has imported what they need, and kills them.

    python -m tests.e2e.forked_runs < jobs

Each line of standard input is a job in JSON: ``arguments`` of the command line; ``save``, the
number of the save of a walk's state behind which the process kills itself; ``after``, seconds after
which it is killed wherever it is; ``pause``, seconds that each layer takes longer. A line of JSON
is the answer: ``killed``, ``code`` and ``err``, what it wrote to standard error. A walk saves its
state behind every layer, however quick that was, and one that is gone on with is told there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any


def main() -> None:
    """Answers jobs until there are no more."""
    # What the stages import. No threads come of it, which a fork would not have.
    import modelopt.torch.quantization  # noqa: F401
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                _run(job)
            status = _wait(child, job.get("after"))
            said.seek(0)
            answer = {
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "code": os.waitstatus_to_exitcode(status),
                "err": said.read(),
            }
        print(json.dumps(answer), flush=True)


def _wait(child: int, after: float | None) -> int:
    timer = threading.Timer(after, os.kill, (child, signal.SIGKILL)) if after else None
    if timer:
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer:
        timer.cancel()
        timer.join()
    return status


def _run(job: dict[str, Any]) -> None:
    """Becomes one run; does not return."""
    from pipeline.cli.main import main as command
    from pipeline.layers.state import State
    from pipeline.progress.pace import Pace

    save, load, advance = State.save, State.load, Pace.advance
    saved = 0

    def save_and_die(self: State, *arguments: Any, **options: Any) -> None:
        nonlocal saved
        save(self, *arguments, **options)
        saved += 1
        if saved == job.get("save"):
            os.kill(os.getpid(), signal.SIGKILL)

    def load_and_tell(self: State, *arguments: Any, **options: Any) -> Any:
        found = load(self, *arguments, **options)
        if found is not None:
            print(f"state of {found.finished} layers", file=sys.stderr, flush=True)
        return found

    def slowly(self: Pace, layers: float = 1.0) -> None:
        time.sleep(job.get("pause", 0.0) * layers)
        advance(self, layers)

    State.save = save_and_die  # type: ignore[method-assign]
    State.load = load_and_tell  # type: ignore[method-assign]
    State.due = property(lambda _self: True)  # type: ignore[method-assign,assignment]
    Pace.advance = slowly  # type: ignore[method-assign]
    sys.argv = ["trtllm-pipeline", *job["arguments"]]
    command()


if __name__ == "__main__":
    main()
