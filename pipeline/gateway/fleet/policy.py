"""What a fleet is set to. Standard library only, for the command line reads its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """How streams are placed and resumed.

    Attributes:
        resumes: How often one request may go on after its server was lost; 0 for never.
        wait_s: Seconds that a request waits for a server that answers, each time that it needs
            one. Where none has answered for so long already, it does not wait at all.
        timeout_s: Seconds for a whole request, with what it waits for servers; None is no limit.
        pause_s: Seconds that a request does without a server that failed it and says that it is
            ready, at first; each time in a row twice as long, up to eight times.
        greedy: How a greedy text goes on, and one that is drawn with a seed of nobody's wish.
            ``continue``: the tokens so far become part of the prompt, computed at once, whatever
            their number. ``replay``: all of them are made again, as those with a seed are in any
            case.
        overlap: Tokens that are made again, and compared, where a greedy text is continued.
        silent_s: Seconds without a token after which a stream leaves a server that is not ready
            any more. A server that stops in good order is not ready either, and finishes what it
            has; one that was cut off says nothing.
        load_factor: How much more than its share of all requests a server may have for the sake of
            a prompt's beginning that it has seen; at least 1.
        block: Tokens of a prompt that count as one piece of its beginning.
        most_blocks: Pieces of a prompt that are looked at; what is behind them does not matter.
        most_remembered: Pieces that are remembered of each server.
        probe_s: Seconds between two questions whether a server is ready.
        lost_probe_s: The same while it is not.
        metrics_s: Seconds between two looks at a server's metrics.
    """

    resumes: int = 5
    wait_s: float = 120.0
    timeout_s: float | None = None
    pause_s: float = 0.25
    greedy: Literal["continue", "replay"] = "continue"
    overlap: int = 8
    silent_s: float = 5.0
    load_factor: float = 1.25
    block: int = 32
    most_blocks: int = 64
    most_remembered: int = 16_384
    probe_s: float = 1.0
    lost_probe_s: float = 0.1
    metrics_s: float = 0.5
