"""What the command tells the process that has lm-eval, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Which model answers which tasks.

    Attributes:
        source: The snapshot of the source model, whose tokenizer everything uses.
        checkpoint: The checkpoint that is measured; None measures another.
        url: The server that is measured; None measures another.
        trust_remote_code: Whether Python code of the snapshot is run.
        tasks: Names of lm-eval's tasks, groups or tags.
        limit: Rows of each task, at most; None is all.
        num_fewshot: Examples before each question; None is each task's own number.
        include_path: A folder with tasks of the user's own.
        longest_input: Tokens of a prompt that the server takes, at most.
        longest: Tokens of a prompt and its answer together, at most.
        timeout: Seconds for one request to the server.
        tls: Fields of the client's ``Tls``; empty without any.
        headers: gRPC metadata for the server, by name.
    """

    source: str
    checkpoint: str | None
    url: str | None
    trust_remote_code: bool
    tasks: tuple[str, ...]
    limit: int | None
    num_fewshot: int | None
    include_path: str | None
    longest_input: int
    longest: int
    timeout: float = 300.0
    tls: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes it as a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Reads what :meth:`write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "tasks": tuple(values["tasks"])})
