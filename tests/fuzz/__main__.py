"""Sends seeded requests to a server of its own, and fails on anything that must not be.

python -m tests.fuzz --repository DIR [--requests 10000] [--seed 1]
python -m tests.fuzz --repository DIR --replay build/fuzz/finding-0.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from pipeline.triton.server import TritonServer
from tests.fuzz.campaign import Runner, failed, table, written
from tests.fuzz.case import from_json

FOLDER = Path("build/fuzz")


def main() -> int:
    """Runs a campaign, or one request again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("build/fuzzed/repository"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, help="printed; a new one each time without it")
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--shrink", type=int, default=25, help="findings to make smaller")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="a finding to send again")
    parser.add_argument("--log", type=Path, help="the server's log")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**31)
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "triton.log"
        with TritonServer(arguments.repository, log_file=log, watchdog=False) as server:
            runner = Runner(server, seed)
            try:
                if arguments.replay:
                    return replay(runner, arguments.replay)
                print(f"{arguments.requests:,} requests, seed {seed}", flush=True)
                campaign = runner.run(arguments.requests, arguments.first)
                runner.shrink_all(arguments.shrink)
            finally:
                runner.close()
        print(table(campaign))
        for line in written(campaign, FOLDER):
            print(line)
        wrong = failed(campaign)
        print(f"failed: {'; '.join(wrong)}" if wrong else "nothing that must not be")
        return 1 if wrong else 0


def replay(runner: Runner, path: Path) -> int:
    """Sends a finding's request again and says what comes back."""
    case = from_json(json.dumps(json.loads(path.read_text())["request"]))
    verdict, outcome, found = runner.try_one(case)
    print(f"deserves:  {verdict.word} ({verdict.why})")
    print(f"came back: {outcome.kind} {outcome.status} {outcome.message}")
    for response in outcome.responses[:5]:
        print(f"           {str(response)[:300]}")
    print(f"finding:   {found.kind}: {found.detail}" if found else "finding:   none")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
