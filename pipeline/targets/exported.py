"""What targets have in common whose engine directory is for another program to run.

Such a target writes files: Triton serves none of them, nothing of it is built elsewhere and taken
in, and there is no container of ours for it. Each of these is refused in one place, here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.dependencies import Requirements
from pipeline.economics.hardware import Setting
from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import (
    Contained,
    Diagnosis,
    EngineEvaluation,
    Explanation,
    NotMeasured,
    OwnType,
    Room,
    ServeCommand,
)
from pipeline.targets.built_here import BuiltHere, Refusal

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.targets.base import TritonModel
    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions

_RANKS = ("tensor_parallel", "pipeline_parallel")


class ExportedTarget(BuiltHere):
    """Writes an engine directory that another program runs.

    A subclass says its ``name``, the program, and what it refuses, reads, compiles and is run with.
    ``compile`` writes all that the program needs and ``config.json`` into the engine directory,
    which a run deploys as ``build/NAME/export`` once its numbers have passed.

    Attributes:
        name: Its word in ``compile.target``.
        program: What runs the files, as people call it, such as ``vLLM``.
        own_server: Whether the program is started here to serve; see ``self_served.py``.
        rounds_activations: Whether the program computes in the checkpoint's dtype.
        reads_source: Such a folder is all that its program gets, so tokenizer, chat template and
            licence of the source go along.
        takes_zero_points: Whether its files have INT4 zero points; a subclass that writes them says
            so.
        takes_input_order: Whether they have groups that take inputs out of order, likewise.
    """

    name: str
    program: str
    own_server: bool = False
    own_types: Mapping[str, OwnType] = MappingProxyType({})
    rounds_activations: bool = True
    reads_source: bool = True
    takes_zero_points: bool = False
    takes_input_order: bool = False

    @abstractmethod
    def needs(self, recipe: Recipe) -> Requirements:
        """Names the optional packages that it compiles with in this Python."""

    @abstractmethod
    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what cannot be written exactly, or not be run by the program.

        Raises:
            UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
        """

    @abstractmethod
    def tools(self) -> Mapping[str, str]:
        """Returns the versions of everything that decides the files' bytes, by name."""

    @abstractmethod
    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes the engine directory; see :meth:`pipeline.targets.base.Target.compile`."""

    @abstractmethod
    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Writes the commands that run the export; see
        :meth:`pipeline.targets.base.Target.next_steps`."""

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns ``compile`` without other targets' options; the ranks are the checkpoint's."""
        section = recipe.compile.read_by(self.name)
        return {"compile": {key: value for key, value in section.items() if key not in _RANKS}}

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation | None:  # noqa: ARG002
        """Returns nothing: there is no more to say than the recipe does."""
        return None

    def setting(
        self,
        recipe: Recipe,  # noqa: ARG002
        facts: ModelFacts,  # noqa: ARG002
        remembered: Path,  # noqa: ARG002
    ) -> Setting | None:
        """Returns no machine: the program runs somewhere else."""
        return None

    def room(self, recipe: Recipe, facts: ModelFacts) -> Room | None:  # noqa: ARG002
        """Returns no memory, for the same reason."""
        return None

    def step_tokens(self, recipe: Recipe) -> int:
        """Returns the recipe's own number."""
        return recipe.compile.max_num_tokens

    @property
    def no_script(self) -> Refusal:
        """Says that the files are written by whoever has the checkpoint."""
        return (
            f"there is no build script for the files that {self.program} runs",
            "They are written where the recipe runs, in seconds and without a GPU",
        )

    @property
    def not_taken_in(self) -> Refusal:
        """Says that such files come from no other place."""
        return (
            f"the files that {self.program} runs cannot be taken in: they are written here",
            "They are the checkpoint in another form, and nothing in them says which one",
        )

    def evaluation(self, recipe: Recipe) -> EngineEvaluation | NotMeasured:  # noqa: ARG002
        """Says that the program is not run here."""
        return NotMeasured(
            f"It is for {self.program}, which the pipeline does not run",
            f"Measure it in {self.program}; evaluate has measured the checkpoint that it is "
            "written from",
        )

    @property
    def triton_model(self) -> TritonModel | None:
        """Returns nothing: Triton has no part in it."""
        return None

    def engine_problems(
        self,
        model: proto.ModelConfig,  # noqa: ARG002
        directory: Path,
        config: Mapping[str, Any],  # noqa: ARG002
    ) -> Iterator[str]:
        """Names the one problem: Triton cannot load it."""
        yield f"{directory} holds files for {self.program}, not an engine of Triton's"

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:  # noqa: ARG002
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        self._not_served(repository)

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:  # noqa: ARG002
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        self._not_served(repository)

    def compose(self, repository: Path, options: ServerOptions) -> str:  # noqa: ARG002
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        self._not_served(repository)

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:  # noqa: ARG002
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        self._not_served(repository)

    def findings(self) -> list[Diagnosis]:
        """Returns nothing: writing files needs nothing of the machine."""
        return []

    def _not_served(self, place: Path) -> NoReturn:
        raise UnsupportedError(
            f"this build is for {self.program}, and the pipeline does not serve it",
            where=str(place),
            fix=f"Run it in {self.program}; README.md of its folder export has the commands",
        )
