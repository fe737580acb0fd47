"""What targets have in common whose engine another program serves here, with OpenAI's API."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RepositoryError, UnsupportedError, UsageError
from pipeline.reading.json_text import read_json
from pipeline.targets.base import Contained, ServeCommand
from pipeline.targets.exported import ExportedTarget

if TYPE_CHECKING:
    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions

ENGINE, TOKENIZER, SETTINGS = "engine", "tokenizer", "serving.json"
"""What such a repository holds: the engine directory, the tokenizer with texts that prove it, and
what the engine was built for, which the server is started with."""


@dataclass(frozen=True)
class ServingSettings:
    """What ``serving.json`` of a repository says.

    Attributes:
        name: The recipe's, which is the model's name for clients.
        compile: The recipe's ``compile`` as the target read it.
    """

    name: str
    compile: Mapping[str, Any]

    @classmethod
    def read(cls, repository: Path) -> ServingSettings:
        """Reads them.

        Raises:
            RepositoryError: The file is missing or damaged.
        """
        path = repository / SETTINGS
        try:
            content = read_json(path)
            return cls(str(content["name"]), dict(content["compile"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RepositoryError(
                "the repository does not say what its engine was built for",
                where=str(path),
                why=str(error),
                fix="Run its recipe again, which deploys it afresh",
            ) from error


class SelfServedTarget(ExportedTarget):
    """Writes an engine that a server of its own runs on this machine, and verify and bench ask it.

    Attributes:
        own_server: True.
    """

    own_server = True

    @abstractmethod
    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:
        """Makes the server; see :meth:`pipeline.targets.base.Target.server`."""

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:  # noqa: ARG002
        """Refuses: the server's own program is not on this machine.

        Raises:
            UnsupportedError: Always.
        """
        raise self._served_by_command(repository, "command")

    def compose(self, repository: Path, options: ServerOptions) -> str:  # noqa: ARG002
        """Refuses: there is no image of ours for it.

        Raises:
            UnsupportedError: Always.
        """
        raise self._served_by_command(repository, "compose file")

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:  # noqa: ARG002
        """Refuses, as :meth:`compose` does.

        Raises:
            UnsupportedError: Always.
        """
        raise self._served_by_command(repository, "manifest")

    def _served_by_command(self, repository: Path, form: str) -> UnsupportedError:
        return UnsupportedError(
            f"there is no {form} for a build that {self.program} serves",
            where=str(repository),
            why=f"It is served by the command serve, which starts {self.program} and watches it",
            fix=f"Run trtllm-pipeline serve {repository}, or give its model file to a "
            f"{self.program} of your own",
        )


def refuse_options_of_triton(repository: Path, options: ServerOptions) -> None:
    """Refuses what only Triton's servers can be told.

    Raises:
        UsageError: GPUs were named, or certificates given.
    """
    if options.devices is not None or options.orchestrator or options.mpirun:
        raise UsageError(
            "--devices, --orchestrator and --mpirun are for repositories of the tensorrt target",
            where=str(repository),
            fix="Leave them out: this repository runs on the CPU, without a container",
        )
    if options.tls:
        raise UsageError(
            "--tls-cert is for gRPC, which this server does not speak",
            where=str(repository),
            fix="Leave it out, and listen on loopback behind a proxy that has TLS",
        )
