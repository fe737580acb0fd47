"""The protocol behind which a compile target lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.dependencies import Requirements, install, installed
from pipeline.economics.hardware import Setting
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.triton.parameters import EngineModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.evaluation.scoring import Scorer
    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions

LOG_NAME = "build.log"
"""What a build said, in an engine directory. It stays in the store, as it names places here."""

TritonModel = Callable[[Recipe, Mapping[str, Any]], EngineModel]
"""Says how Triton runs an engine, from the recipe and the engine directory's ``config.json``.

Raises:
    RepositoryError: The engine cannot be served.
    UnsupportedError: The recipe asks for what the engine cannot do.
"""


@dataclass(frozen=True)
class Diagnosis:
    """One line of ``doctor``.

    Attributes:
        name: What was looked at.
        value: What was found.
        ok: Whether it is as it should be.
        advice: What to do when it is not.
        needed: Whether the target cannot run here while it is not; otherwise it is good to know.
    """

    name: str
    value: str
    ok: bool = True
    advice: str = ""
    needed: bool = True


def look_for(package: str, extra: str, use: str) -> Diagnosis:
    """Says whether a distribution is installed, and what it is for where it is not.

    Args:
        package: The distribution's name.
        extra: The extra of this project that installs it.
        use: What needs it.
    """
    found = installed(package)
    return Diagnosis(package, found or "absent", found is not None, f"For {use}. {install(extra)}")


@dataclass(frozen=True)
class Explanation:
    """What ``plan`` says about an engine that is not built yet.

    Attributes:
        lines: For a terminal.
        values: The same as JSON values; memory in bytes.
    """

    lines: Sequence[str]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class OwnType:
    """A number format that a target's program has and no checkpoint: compiling rounds to it.

    Attributes:
        values: What a recipe says for it, by dotted key, beside a checkpoint in floating point.
        weight_bits: Bits of most of its weights, without scales.
    """

    values: Mapping[str, str]
    weight_bits: int


@dataclass(frozen=True)
class Room:
    """How much of the memory of a recipe's machine is left for sequences.

    Attributes:
        sequences: Of ``max_seq_len`` tokens, together.
        words: Whose memory it is, such as ``L4``, to follow "fits".
    """

    sequences: int
    words: str


@dataclass(frozen=True)
class GivenEngine:
    """An engine that was built elsewhere.

    Attributes:
        directory: Where it lies.
        files: The SHA-256 of each file that makes it what it is, by name; part of the cache key.
    """

    directory: Path
    files: Mapping[str, str]


@dataclass(frozen=True)
class NotMeasured:
    """Says that engines are not measured on this machine.

    Attributes:
        why: The cause, as a sentence without its full stop.
        fix: What would change it.
    """

    why: str
    fix: str


@dataclass(frozen=True)
class KvCache:
    """What keys and values take of this machine's memory while an engine is measured, in bytes.

    Attributes:
        per_token: Those of a token whose logits :meth:`EngineEvaluation.logits` computes.
        reserved: What :meth:`EngineEvaluation.losses` has room for, before it knows the windows.
    """

    per_token: int = 0
    reserved: int = 0


class EngineEvaluation(Protocol):
    """Measures the quality of engines on this machine."""

    @property
    def method(self) -> str:
        """What is run for the numbers, as a sentence without its full stop."""

    @property
    def material(self) -> Mapping[str, Any]:
        """What decides the measurement besides engine, checkpoint and windows; part of a cache
        key."""

    @property
    def longest_window(self) -> int:
        """Tokens of the longest window that the engine takes."""

    @property
    def rounded_to(self) -> int | None:
        """Bits of a weight where compiling itself rounds them, so that the engine cannot be the
        checkpoint; None where it should be."""

    @property
    def in_float32(self) -> bool:
        """Whether all weights of the engine are in this process in float32 while it is measured."""

    @property
    def gives_logits(self) -> bool:
        """Whether :meth:`logits` gives them, so that the engine answers the recipe's tasks."""

    def kv_cache(self, facts: ModelFacts) -> KvCache:
        """Returns what keys and values take of this machine's memory.

        Args:
            facts: Of the model.
        """

    def logits(self, engine: Path) -> AbstractContextManager[Scorer | None]:
        """Opens an engine for every logit that it computes; None where it does not give them.

        Args:
            engine: The directory that :meth:`Target.compile` filled.

        Raises:
            StageError: The engine cannot be opened.
        """

    def losses(
        self,
        engine: Path,
        checkpoint: Path,
        windows: Sequence[Sequence[int]],
        workspace: Path,
        progress: Progress,
    ) -> list[NDArray[np.float32]]:
        """Measures how likely an engine finds every token of the windows, but for their first.

        Args:
            engine: The directory that :meth:`Target.compile` filled.
            checkpoint: The checkpoint that it was compiled from.
            windows: Token ids, two or more, and of :attr:`longest_window` at most.
            workspace: Where files may lie meanwhile; nothing of them is left.
            progress: Where it reports.

        Returns:
            For each window the negative log-likelihoods, in nats, of its tokens but the first.

        Raises:
            UnsupportedError: This machine cannot measure the engine.
            StageError: The engine could not be measured.
        """


class ServeCommand(Protocol):
    """A command line that serves a repository, to copy."""

    @property
    def command(self) -> Sequence[str]:
        """The command, word by word."""

    @property
    def image(self) -> str | None:
        """The container image; None when it starts in place."""

    @property
    def text(self) -> str:
        """The whole command line for a shell."""

    @property
    def lines(self) -> str:
        """The same over several lines, to copy."""

    @property
    def exit_timeout_s(self) -> int:
        """Seconds that the stopping server waits for requests in flight."""


@dataclass(frozen=True)
class Contained:
    """How a target's server runs in a container of somebody else's, such as a cluster's.

    Attributes:
        image: The image's name.
        dockerfile: The file of this project that makes the image; None where it is published.
        builder: The file that makes an image in which the recipe runs.
        command: What runs, instead of the image's own command; None keeps that.
        arguments: The words behind it.
        spread: How the command begins that starts the same ranks over several machines, to which
            the names of those are added; None where it cannot be.
        mount: Where the repository is for the server.
        shared_memory: Bytes of ``/dev/shm``.
        gpus: As many as the engine has ranks; 0 for an engine of the CPU.
        finishes: Whether it lets requests in flight end once it got SIGTERM.
        checks: Whether it compares every file of the repository with the manifest as it starts.
    """

    image: str
    dockerfile: str | None
    builder: str
    command: Sequence[str] | None
    arguments: Sequence[str]
    spread: Sequence[str] | None
    mount: str
    shared_memory: int
    gpus: int
    finishes: bool
    checks: bool


class Target(Protocol):
    """Compiles a TensorRT-LLM checkpoint, and says how Triton runs the result.

    Everything that is known about a target is known here: no other part of the pipeline asks for
    its name.
    """

    name: str
    own_types: Mapping[str, OwnType]
    """Formats that compiling rounds to, by the names that the program has for them."""
    rounds_activations: bool
    """Whether activations have the checkpoint's dtype, so that those beyond its range become
    infinite; otherwise they are float32."""
    reads_source: bool
    """Whether :meth:`compile` reads the snapshot besides the checkpoint, for config.json or the
    tokenizer that go along with what it writes."""
    takes_zero_points: bool
    """Whether it computes INT4 weights whose codes are counted from zero points."""
    takes_input_order: bool
    """Whether it computes INT4 weights whose groups take inputs out of order (act-order)."""

    def needs(self, recipe: Recipe) -> Requirements:
        """Names the optional packages that it compiles and serves with in this Python."""

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what cannot work, from the recipe and config.json alone, in under a second.

        Raises:
            UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
        """

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation | None:
        """Describes the engine and its memory before it is built; None where there is no more to
        say than the recipe does.

        Args:
            recipe: A recipe that :meth:`check` has passed.
            facts: The model's facts.
        """

    def setting(self, recipe: Recipe, facts: ModelFacts, remembered: Path) -> Setting | None:
        """Describes the machine that the recipe is for, for the bounds of ``plan``.

        Args:
            recipe: A recipe that :meth:`check` has passed.
            facts: The model's facts.
            remembered: The folder where what is measured once is kept.

        Returns:
            The machine; None where the recipe names none, or its rates are not known.
        """

    def room(self, recipe: Recipe, facts: ModelFacts) -> Room | None:
        """Says how many sequences fit beside the engine, for the sizes of a new recipe.

        Args:
            recipe: A recipe that :meth:`check` has passed.
            facts: The model's facts.

        Returns:
            The room, with something to spare; None where the memory is not known.
        """

    def step_tokens(self, recipe: Recipe) -> int:
        """Returns how many tokens a step of the engine takes, of prompts and answers together."""

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns what :meth:`compile` reads of the recipe, as JSON values under its own names.

        It is part of the engine's cache key, so it holds no option of another target and nothing
        that only decides how fast the engine is built.
        """

    def tools(self) -> Mapping[str, str]:
        """Returns the versions of everything that decides the engine's bytes, by name; they are
        part of the cache key.
        """

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes an engine directory with ``config.json`` and returns facts about it.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: The recipe; ``compile`` is the section that counts.
            output: An empty directory.
            progress: Where it reports.
            source: The snapshot that the checkpoint was made of, for a target with
                :attr:`reads_source`; None for any other.

        Raises:
            CompileError: The engine could not be built.
        """

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Writes what is done next with an engine that is not served here, as lines of shell.

        A run shows them last, and README.md of the deployed folder has them. A target that is
        served returns none.

        Args:
            recipe: The recipe; ``compile`` is the section that counts.
            folder: Where the engine directory lies for whoever reads the lines.
        """

    def build_script(self, checkpoint: Artifact, recipe: Recipe) -> str:
        """Writes a shell script that builds the engine elsewhere, from a copy of the checkpoint.

        Args:
            checkpoint: The checkpoint's artifact.
            recipe: The recipe; ``compile`` is the section that counts.

        Raises:
            UnsupportedError: The target's engines are built where the pipeline runs.
        """

    def given_files(self, directory: Path) -> Sequence[str]:
        """Names the files of an engine that was built elsewhere, after a first look at it.

        Args:
            directory: The engine directory.

        Raises:
            UnsupportedError: The target takes no engine from elsewhere.
            CompileError: It is not a complete engine.
        """

    def adopt(
        self,
        given: GivenEngine,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
    ) -> dict[str, Any]:
        """Takes in an engine that was built elsewhere, in place of :meth:`compile`.

        Args:
            given: The engine.
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: The recipe; ``compile`` is the section that counts.
            output: An empty directory.
            progress: Where it reports.

        Returns:
            The facts of :meth:`compile`; and ``adopted``, which is true, and ``tools``, the
            versions that it was built with.

        Raises:
            CompileError: It is damaged, or not the engine of this recipe and checkpoint.
        """

    def evaluation(self, recipe: Recipe) -> EngineEvaluation | NotMeasured:
        """Says how engines are measured on this machine, or why they are not.

        Args:
            recipe: The recipe; ``compile`` is the section that counts.
        """

    @property
    def triton_model(self) -> TritonModel | None:
        """How Triton runs an engine. A target that only exports has None here: its chain of stages
        ends at ``compile``, and the methods below that concern a repository are never called;
        unless it has a server of its own.
        """

    @property
    def own_server(self) -> bool:
        """Whether an engine is served by a server of its own, with OpenAI's API, and not by Triton.

        Its repository is made of ``targets/self_served.py``.
        """

    def engine_problems(
        self, model: proto.ModelConfig, directory: Path, config: Mapping[str, Any]
    ) -> Iterator[str]:
        """Names everything that would keep Triton from serving an engine, one sentence each.

        Args:
            model: ``config.pbtxt`` of the engine model.
            directory: The engine directory in the repository.
            config: Its ``config.json``.
        """

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:
        """Makes the server of a repository, which ``with`` starts and stops.

        Args:
            repository: The repository.
            log: Where the server's own log goes.
            options: Where it listens, and the GPUs it takes.

        Raises:
            UsageError: An option is not one of this target.
            UnsupportedError: This machine cannot serve it; the message has the command for one
                that can.
        """

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:
        """Returns the command that serves a repository, for this machine or another.

        Raises:
            UsageError: An option is not one of this target.
            UnsupportedError: No known image can read the engine.
        """

    def compose(self, repository: Path, options: ServerOptions) -> str:
        """Writes a compose file that serves a repository, for this machine or another.

        Raises:
            UsageError: An option is not one of this target.
            UnsupportedError: No known image can read the engine.
        """

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:
        """Describes its server for a cluster: listening on every address, on the usual ports.

        Args:
            repository: The repository.
            exit_timeout_s: Seconds that a stopping server waits for requests in flight: a number,
                or what becomes one where it runs.

        Raises:
            RepositoryError: The engine does not say what it needs.
            UnsupportedError: No known image can read the engine.
        """

    def findings(self) -> list[Diagnosis]:
        """Says what ``doctor`` should know about this machine and the target.

        Packages for quantizing, disk, memory and ports are the same for every target and not among
        it. Nothing takes longer than a few seconds, whatever hangs.
        """
