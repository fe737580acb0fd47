"""How ``--help`` looks: flags without a type, and examples below the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from pipeline.cli import complete

PROGRAM = "trtllm-pipeline"
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "init MODEL_DIR",
        "run configs/demo.yaml",
        "serve build/tiny-llama-int4-awq/repository",
        'generate --url localhost:8001 "Once there was"',
    ),
    "init": (
        "init MODEL_DIR --text mine.jsonl",
        "init Qwen/Qwen2.5-7B-Instruct --gpu L4",
    ),
    "run": (
        "run configs/demo.yaml",
        "run configs/demo.yaml --set quantize.group_size=64",
        "run configs/demo.yaml --force bench --until bench",
    ),
    "plan": (
        "plan configs/demo.yaml",
        "plan configs/llama-3.1-8b-int4-awq.yaml --price 0.8",
    ),
    "serve": (
        "serve build/tiny-llama-int4-awq/repository",
        "serve build/tiny-llama-int4-awq --http-port 9000",
    ),
    "gateway": (
        "gateway --url gpu1:8001 --url gpu2:8001 --tokenizer MODEL_DIR",
        "gateway --url gpu1:8001 --tokenizer DIR --context-length 8192",
    ),
    "generate": (
        'generate --url localhost:8001 "Once there was"',
        'generate --url localhost:8001 --json "Once there was"',
    ),
    "targets": (
        "targets",
        "targets configs/demo.yaml",
    ),
    "verify": (
        "verify --url localhost:8001 --junit conformance.xml",
        "verify --url localhost:8001 --tokenizer MODEL_DIR",
        "verify --url localhost:8001 --only log_probs,border",
    ),
    "bench": (
        "bench --url localhost:8001 --concurrency 1,8,32",
        "bench --repository build/tiny-llama-int4-awq/repository",
        "bench --url localhost:8001 --rate 2,4 --goodput ttft:300",
    ),
    "compare": (
        "compare configs/demo.yaml --concurrency 1,8 --seconds 10",
        "compare build/tiny-llama-int4-awq build/tiny-llama-int8-sq",
        "compare --history build/tiny-llama-int4-awq",
    ),
    "capacity": ("capacity build/NAME --trace FILE --ttft-ms 500 --itl-ms 50",),
    "lm-eval": (
        "lm-eval configs/demo.yaml --model checkpoint --tasks arc_easy",
        "lm-eval configs/demo.yaml --model localhost:8001 --tasks piqa",
    ),
    "certificates": ("certificates certs", "certificates certs --name gpu7.example.org --days 30"),
    "sign": ("sign build/tiny-llama-int4-awq --key private.pem",),
    "doctor": ("doctor", "doctor --json"),
    "schema": ("schema > recipe.schema.json", "schema --markdown"),
    "manifests": (
        "manifests build/tiny-llama-int4-awq",
        "manifests build/tiny-llama-int4-awq --kind helm --output out",
    ),
    "store": ("store list", "store prune --dry-run"),
    "store list": ("store list", "store list --build-dir /data/build --json"),
    "store verify": ("store verify",),
    "store publish": ("store publish build/tiny-llama-int4-awq --to /mnt/repo",),
    "store prune": ("store prune --dry-run", "store prune --no-keep"),
}
"""What one may type, by command; the program's name comes before each."""

EXIT_CODES: Mapping[int, str] = {
    0: "ok",
    2: "the command line or the recipe is wrong",
    3: "what was asked for cannot work, or a package is missing",
    4: "a quality gate is closed, or cannot be told yet",
    5: "a stage failed",
    6: "the server failed, or answered wrongly",
    130: "interrupted by Ctrl-C (143: by SIGTERM)",
}
ENVIRONMENT: Mapping[str, str] = {
    "HF_TOKEN": "for gated models of the Hugging Face Hub",
    "HF_HOME": "where models of the Hub are kept",
    "HF_HUB_OFFLINE": "1 asks the Hub nothing",
    "TRTLLM_PIPELINE_DEBUG": "1 shows tracebacks, as --debug does",
    "TRTLLM_PIPELINE_ENV": "names of variables for the GPU container, as --env",
    "NO_COLOR": "any value leaves colours out",
}
"""The variables that people set; docs/install.md has the rest."""


CHOICES: Mapping[str, Callable[[str], list[str]]] = {
    "{stages}": complete.stages,
    "{targets}": complete.targets,
}
"""What stands in the help of an option for names that would take long to import at every start."""


def below_options(command: str) -> str:
    """Writes what stands below the options of a command: examples, and more for the program.

    Args:
        command: Its words without the program's name; empty for the program itself.
    """
    lines = ["Examples:", *(f"  {PROGRAM} {example}" for example in EXAMPLES.get(command, ()))]
    if not command:
        lines += ["", "Exit codes:", *(f"  {code:<3}  {said}" for code, said in EXIT_CODES.items())]
        width = max(map(len, ENVIRONMENT))
        lines += ["", "Environment variables:"]
        lines += [f"  {name:<{width}}  {said}" for name, said in ENVIRONMENT.items()]
    return "\n".join(f" {line}" for line in lines)


def _dress(command: TyperCommand | TyperGroup, context: Any) -> None:
    for option in command.get_params(context):
        if not isinstance(option, TyperOption):
            continue
        if option.is_flag and option.metavar is None:
            option.metavar = ""  # it would say <bool>
        for place, names in CHOICES.items():
            if option.help and place in option.help:
                option.help = option.help.replace(place, ", ".join(names("")))


def _print_below(context: Any) -> None:
    # Not as the epilog, which would break a command where the window ends: they are to be copied.
    print(below_options(context.command_path.partition(" ")[2]))


class Command(TyperCommand):
    """A command whose help ends with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help; what only it needs is made here, and not at every start."""
        _dress(self, ctx)
        super().format_help(ctx, formatter)
        _print_below(ctx)


class Group(TyperGroup):
    """A group of commands whose help ends with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help; what only it needs is made here, and not at every start."""
        _dress(self, ctx)
        super().format_help(ctx, formatter)
        _print_below(ctx)
