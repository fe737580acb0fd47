"""The checks as a table, on a terminal and as a page."""

from __future__ import annotations

from pipeline.tables import print_table
from pipeline.verify.catalogue import CHECKS

_INTRODUCTION = """# Conformance

<!-- Written by `make docs` from pipeline/verify: change the checks, not this page. -->

What `trtllm-pipeline verify` asks a server, and what must come back. It takes any server with
NVIDIA's tensor names. What a server cannot have is *skipped* with the reason, never passed in
silence; a run with a failed check ends with exit code 6. `--json` and `--junit` say the same as the
table, with what was seen.

<!-- not run: they need a running server -->
```sh
trtllm-pipeline verify --url localhost:8001                      # the usual ones, ten seconds
trtllm-pipeline verify --repository build/NAME --all             # a minute or two more
trtllm-pipeline verify --url localhost:8001 --all --http http://localhost:8000
trtllm-pipeline verify --url localhost:8001 --all --metrics http://localhost:8002/metrics
trtllm-pipeline verify --url localhost:8001 --only log_probs,border
trtllm-pipeline verify --list                                    # this page, on the terminal
```

The thorough ones run with `--all`, or by their names. Those of them that look at HTTP and at
metrics need those addresses, which nothing on gRPC says. Some open very many requests
(`queue_full`), and some wait until nobody else uses the server (`client_cancels` and its like):
they are not for a server that others wait for.
"""


def print_list() -> None:
    """Prints what each check asks and what must be, as a table."""
    rows = [[c["name"], c["asks"], c["proves"]] for c in listed()]
    print_table(["check", "what is asked", "what must be"], rows, whole=(0,))
    thorough = sum(check.thorough for check in CHECKS.values())
    print(f"\n{len(CHECKS)} checks, {thorough} of them thorough (--all)")


def listed() -> list[dict[str, object]]:
    """Lists the checks as JSON values, in their order."""
    return [
        {"name": c.name, "asks": c.asks, "proves": c.proves, "thorough": c.thorough}
        for c in CHECKS.values()
    ]


def page() -> str:
    """Writes ``docs/conformance.md``."""
    parts = [_INTRODUCTION]
    for heading, thorough in (("The usual checks", False), ("The thorough checks", True)):
        parts.append(f"\n## {heading}\n\n| check | what is asked | what must be |\n|---|---|---|\n")
        for check in CHECKS.values():
            if check.thorough == thorough:
                cells = (f"`{check.name}`", check.asks, check.proves)
                parts.append(
                    f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
                )
    return "".join(parts)
