"""The functions for programs: what the commands of the same names do, as values.

Nothing is printed and no process is ended. Every error is a
:class:`~pipeline.errors.PipelineError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.economics.bounds import Roofline, roofline, with_reached
from pipeline.effort.planned import Effort
from pipeline.errors import PipelineError, RecipeError, UsageError, check_all
from pipeline.evaluation.tasks.reading import check_tasks
from pipeline.models.facts import ModelFacts
from pipeline.preflight.model_checks import (
    check_hub_model,
    check_local_model,
    check_model,
    explain_engine,
)
from pipeline.preflight.remarks import engine_not_measured, remarks
from pipeline.preflight.streams import check_bench
from pipeline.progress import Progress, Silent
from pipeline.recipe import file as recipe_file
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import PlannedStage, stages_for
from pipeline.running.room import effort_left, plan_in
from pipeline.running.runner import Listener, RunResult, run_recipe
from pipeline.serving import serving, serving_with_own_log
from pipeline.source.end_ids import EndIds, read_end_ids
from pipeline.source.local import local_directory
from pipeline.source.texts import check_texts
from pipeline.stages import bench
from pipeline.stages import compile as compile_stage
from pipeline.store.build_dir import BuildDir
from pipeline.targets import get_target
from pipeline.targets.base import Explanation
from pipeline.targets.findings import Finding
from pipeline.verdict.checks import gates_of
from pipeline.verdict.decision import Outcome, decide
from pipeline.verdict.gate import GateResult

BUILD_DIR = "build"
# The stages whose numbers the quality gates are about.
MEASURED = ("evaluate", "fidelity")


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        stages: Every stage of the recipe, in order.
        end_ids: The tokens that end a text of the model; None before it is fetched.
        findings: What is worth knowing about the model and the recipe, warnings first.
        engine: The engine and its memory; None where there is no more to say than the recipe does.
        obstacle: A text that is missing on this machine, or memory or disk that it has not, at
            which a run would stop at once.
        checkpoint: The folder of the checkpoint in the store; None before there is one.
        roofline: What the machine allows at most, and what was reached of it; None where its rates
            are not known.
        gates: What the recipe's gates say of the numbers in the store; empty before there are any.
        refusal: What a run would stop at, because of artifacts that are in the store already: a
            gate that is not open, or a server that answered wrongly; None where it would go on.
        effort: What the stages that are to run take of this machine, about.
    """

    stages: tuple[PlannedStage, ...]
    end_ids: EndIds | None
    findings: tuple[Finding, ...]
    engine: Explanation | None
    obstacle: PipelineError | None
    checkpoint: Path | None
    roofline: Roofline | None = None
    gates: tuple[GateResult, ...] = ()
    refusal: PipelineError | None = None
    effort: Effort | None = None

    @property
    def verdict(self) -> Outcome | None:
        """What would become of a run by what is in the store; None where it does not say yet."""
        if self.refusal:
            outcome = decide(self.gates, None, None).verdict
            return outcome if outcome != "ACCEPT" else "FAILED"
        return "ACCEPT" if all(line.status == "cached" for line in self.stages) else None

    @property
    def exit_code(self) -> int:
        """The code that a run would stop with at once; 0 where it could go on."""
        stops = self.obstacle or self.refusal
        return stops.exit_code if stops else 0


@dataclass(frozen=True)
class Addresses:
    """Where a server answers.

    Attributes:
        grpc: Host and port, as ``trtllm_client.Client`` takes them.
        http: The URL of the HTTP endpoint; None where there is none.
        metrics: The URL of the metrics in Prometheus' format.
    """

    grpc: str
    http: str | None
    metrics: str


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The YAML file.
        overrides: ``key=value`` assignments applied before validation, as for ``--set``; values are
            YAML.

    Raises:
        RecipeError: The file is missing, is not YAML, or breaks a rule of the recipe.
        UsageError: An override is not an assignment to a key.
    """
    return recipe_file.load_recipe(Path(path), overrides)


def plan(recipe: Recipe, build_dir: str | PathLike[str] = BUILD_DIR) -> Plan:
    """Plans a run without doing anything of it.

    Of a model on the Hub that has not been fetched yet, ``config.json`` is.

    Args:
        recipe: The recipe.
        build_dir: Where the store and the outputs are, or would go.

    Raises:
        RecipeError: ``model.source`` is neither a directory nor a Hub id.
        UnsupportedError: The model, the recipe and the target do not go together.
        SourceError: The model is damaged, incomplete, or cannot be fetched.
    """
    build = BuildDir(Path(build_dir))
    try:
        facts = check_local_model(recipe)
    except RecipeError:
        # What else is wrong with the recipe is told with it.
        check_all(partial(check, recipe) for check in (check_local_model, check_texts, check_tasks))
        raise
    store = build.store
    planned = plan_in(build, recipe)
    store.memo.save()
    source = planned[0].artifact
    if facts is None:
        facts = check_model(recipe, source.path) if source else check_hub_model(recipe)
    directory = source.path if source else local_directory(recipe)
    checkpoint = _checkpoint(planned).artifact
    unmeasured = engine_not_measured(recipe)
    effort = effort_left(recipe, facts, build, planned)
    return Plan(
        stages=tuple(planned),
        end_ids=read_end_ids(directory, recipe.model.source) if directory else None,
        findings=(
            *effort.warnings,
            *remarks(recipe, facts, directory),
            *((unmeasured,) if unmeasured else ()),
        ),
        engine=explain_engine(recipe, facts),
        obstacle=_obstacle(recipe, planned) or effort.refusal,
        checkpoint=checkpoint.path if checkpoint else None,
        roofline=_roofline(recipe, facts, store.root, planned),
        gates=tuple(_stored_gates(recipe, planned)),
        refusal=_refusal(recipe, planned),
        effort=effort,
    )


def run(
    recipe: Recipe,
    build_dir: str | PathLike[str] = BUILD_DIR,
    *,
    force: Collection[str] = (),
    until: str | None = None,
    engine: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    on_stage: Listener | None = None,
) -> RunResult:
    """Runs every stage that is not cached, then deploys repository and report.

    Args:
        recipe: The recipe.
        build_dir: Where the store and the outputs go.
        force: Names of stages to run even if cached.
        until: The last stage to run; None runs all.
        engine: The directory of an engine that was built elsewhere, with the script of
            :func:`build_script`; it is taken in instead of compiling one.
        progress: Is told what goes on, such as ``pipeline.progress.Lines(sys.stderr)``; None tells
            nobody.
        on_stage: Called after each stage with its planned stage and the seconds it took.

    Raises:
        UsageError: ``force`` or ``until`` names no stage of the recipe, or ``engine`` no directory.
        RecipeError: A text cannot be read; nothing was done yet.
        MissingDependencyError: A package that a stage needs is not installed; likewise.
        UnsupportedError: The machine has not the memory or the disk that it takes; likewise.
        QualityGateError: A gate of ``evaluate.gates`` is not open; ``found`` has all of them.
        StageError: A stage failed; the artifacts of those before it stay.
        ServerError: Triton did not start, or gave wrong answers.
    """
    known = [stage.name for stage in stages_for(recipe)]
    for name in [*force, *([until] if until else [])]:
        if name not in known:
            raise UsageError(f"there is no stage {name}", fix=f"Stages: {', '.join(known)}")
    build = BuildDir(Path(build_dir))
    given = engine and compile_stage.given_engine(Path(engine), recipe, build.store.memo.digest)
    return run_recipe(
        _typed(recipe, build_dir),
        build,
        progress or Silent(),
        force=frozenset(force),
        until=until,
        engine=given or None,
        on_stage=on_stage or (lambda _line, _seconds: None),
    )


@contextmanager
def serve(
    repository: str | PathLike[str],
    *,
    host: str = "127.0.0.1",
    grpc_port: int = 0,
    http_port: int | None = None,
    metrics_port: int = 0,
    log: str | PathLike[str] | None = None,
) -> Iterator[Addresses]:
    """Serves a repository for the length of a ``with`` block, after checking every file of it.

    Args:
        repository: A repository that :func:`run` deployed.
        host: Address to listen on.
        grpc_port: Port of the gRPC endpoint; 0 takes a free one, and so for the others.
        http_port: Port of the HTTP endpoint; None serves without one.
        metrics_port: Port of the metrics.
        log: The file for the server's log; None keeps one only where the server does not start,
            and the error names it.

    Yields:
        The addresses, once every model is ready.

    Raises:
        UsageError: The directory does not exist.
        RepositoryError: A file of the repository was changed, added or removed.
        UnsupportedError: This machine cannot serve it.
        ServerError: The server did not start.
    """
    folder = Path(repository)
    options: dict[str, Any] = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port or 0,
        "metrics_port": metrics_port,
        "http": http_port is not None,
    }
    opened = serving(folder, Path(log), **options) if log is not None else None
    with opened or serving_with_own_log(folder, **options) as server:
        http = server.http_url if http_port is not None else None
        yield Addresses(server.grpc_url, http, server.metrics_url)


def build_script(recipe: Recipe, build_dir: str | PathLike[str] = BUILD_DIR) -> str:
    """Writes a shell script that builds the engine on another machine.

    Args:
        recipe: The recipe.
        build_dir: Where the store is, with the checkpoint that :func:`run` wrote.

    Raises:
        UnsupportedError: The model, the recipe and the target do not go together, or the target's
            engines are not built elsewhere.
        UsageError: There is no checkpoint of this recipe yet.
    """
    target = get_target(recipe.compile.target)
    planned = _checkpoint(plan(recipe, build_dir).stages)
    if planned.artifact is None:
        source, typed = planned.stage.name, _typed(recipe, build_dir).arguments
        raise UsageError(
            "there is no checkpoint of this recipe to build from yet",
            where=recipe.name,
            why=f"The script compares the checkpoint with its digests; {source}: {planned.reason}",
            fix=f"Write it first: trtllm-pipeline run {typed} --until {source}",
        )
    return target.build_script(planned.artifact, recipe)


def _roofline(
    recipe: Recipe, facts: ModelFacts, remembered: Path, planned: Sequence[PlannedStage]
) -> Roofline | None:
    """The bounds of the recipe's machine, with what its load test reached of them."""
    setting = get_target(recipe.compile.target).setting(recipe, facts, remembered)
    if setting is None:
        return None
    found = roofline(recipe, facts, setting)
    for line in planned:
        if line.stage.name == bench.STAGE.name and line.artifact:
            return with_reached(found, recipe, facts, line.artifact.facts["measurements"])
    return found


def _typed(recipe: Recipe, build_dir: str | PathLike[str]) -> Recipe:
    """The recipe as its commands have to name it, for remedies."""
    here = Path(build_dir)
    return recipe if here == Path(BUILD_DIR) else recipe.built_in(here)


def _checkpoint(planned: Sequence[PlannedStage]) -> PlannedStage:
    """The stage whose artifact the engine is compiled from."""
    (source,) = compile_stage.STAGE.inputs
    return next(line for line in planned if line.stage.name == source)


def _stored_gates(recipe: Recipe, planned: Sequence[PlannedStage]) -> Iterator[GateResult]:
    for line in planned:
        if line.artifact and line.stage.name in MEASURED:
            yield from gates_of(recipe, line.artifact.facts)


def _refusal(recipe: Recipe, planned: Sequence[PlannedStage]) -> PipelineError | None:
    """What the first check of a stored artifact says that would stop a run."""
    for line in planned:
        if line.artifact is None:
            continue
        try:
            line.stage.check(recipe, line.artifact)
        except PipelineError as error:
            return error
    return None


def _obstacle(recipe: Recipe, planned: Sequence[PlannedStage]) -> RecipeError | None:
    """What stops a run here at once, and is no reason not to plan for another machine."""
    try:
        checks: list[Callable[[Recipe], None]] = [check_texts, check_tasks]
        if any(line.stage.name == bench.STAGE.name for line in planned):
            checks.append(check_bench)
        check_all(partial(check, recipe) for check in checks)
    except RecipeError as error:
        return error
    return None
