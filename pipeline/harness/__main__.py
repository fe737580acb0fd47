"""Does a job of :mod:`pipeline.harness.launch`: ``python -m pipeline.harness JOB FOUND``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from pipeline.client_errors import client_errors
from pipeline.errors import PipelineError, UsageError
from pipeline.harness.job import Job
from pipeline.models.facts import ModelFacts
from pipeline.source.tokens import load_tokenizer

SHOWN = ("results", "versions", "n-shot", "n-samples", "higher_is_better")


def main(given: Path, found: Path) -> None:
    """Writes what lm-eval found, or the error for people, as JSON."""
    try:
        with client_errors():
            answer = evaluate(Job.read(given))
    except PipelineError as error:
        parts = {name: getattr(error, name) for name in ("what", "where", "why", "fix")}
        answer = {"error": {"kind": type(error).__name__, **parts}}
    # Functions and NumPy's numbers, of which lm-eval's own configurations are full.
    found.write_text(json.dumps(answer, default=str), encoding="utf-8")


def evaluate(job: Job) -> dict[str, Any]:
    """Runs lm-eval's tasks with the job's model.

    Raises:
        UsageError: There is no such task, or its data cannot be fetched.
    """
    manager = TaskManager(include_path=job.include_path)
    unknown = [task for task in job.tasks if not manager.match_tasks([task])]
    if unknown:
        raise UsageError(
            f"lm-eval has no task {', '.join(unknown)}",
            where="--tasks",
            fix="lm-eval ls tasks lists them, in the environment of lm-eval; --include-path "
            "names a folder with more",
        )
    model = _model(job)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(job.tasks),
            num_fewshot=job.num_fewshot,
            limit=job.limit,
            task_manager=manager,
            log_samples=False,
        )
    except ConnectionError as error:  # by Hugging Face's datasets
        raise UsageError(
            f"the data of {', '.join(job.tasks)} is not here and cannot be fetched",
            where="--tasks",
            why=str(error),
            fix="Connect this machine to the Hub once, which leaves a copy, or name a folder with "
            "tasks on local files by --include-path; questions of HellaSwag and MMLU in local "
            "files are also what evaluate.tasks of the recipe measures",
        ) from error
    return {name: found[name] for name in SHOWN if name in found}


def _model(job: Job) -> LM:
    source = Path(job.source)
    tokenizer = load_tokenizer(source, trust_remote_code=job.trust_remote_code)
    if job.url:
        from pipeline.harness.served import ServedModel
        from trtllm_client import Client, Tls

        client = Client(
            job.url,
            timeout=job.timeout,
            tls=Tls(**job.tls) if job.tls else None,
            headers=job.headers,
        )
        return ServedModel(client, tokenizer, longest=job.longest, longest_input=job.longest_input)
    import torch

    from pipeline.evaluation.scoring import scorer_of
    from pipeline.harness.scored import ScoredModel
    from pipeline.reference import load_reference
    from pipeline.reference.source import load_source
    from pipeline.source.end_ids import read_end_ids

    if job.checkpoint:
        model: Any = load_reference(Path(job.checkpoint))
    else:
        model = load_source(source, trust_remote_code=job.trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ScoredModel(
        scorer_of(model.to(device), device),
        tokenizer,
        longest=job.longest,
        vocabulary=ModelFacts.from_directory(source).vocab_size,
        end_ids=read_end_ids(source).ids,
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
