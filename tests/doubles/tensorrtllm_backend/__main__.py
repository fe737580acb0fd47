"""Serves a repository for a GPU by hand, until Ctrl-C: REPOSITORY and OpenVINO's ENGINE."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from tests.doubles.tensorrtllm_backend.serving import strict_server


def main() -> None:
    """Starts the server and waits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--log", type=Path, default=Path("strict-triton.log"))
    given = parser.parse_args()
    options = {"grpc_port": given.grpc_port, "noise": given.noise}
    with strict_server(given.repository, given.engine, given.log, **options) as server:
        print(f"gRPC {server.grpc_url}  HTTP {server.http_url}  log {given.log}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()


if __name__ == "__main__":
    main()
