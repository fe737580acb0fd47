"""Asks a server that is starting for one token; exits with 0 once it has given one.

    canary.py PROMPT [URL]

The server is that of this container unless a URL says otherwise.
Standard library only: it runs in the server's own container.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

SERVER = "http://127.0.0.1:8000"
MODEL = "tensorrt_llm_bls"
# A proxy of the environment has nothing to do with this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Returns 0 for an answer, and says on standard error why there is none."""
    server = sys.argv[2] if len(sys.argv) > 2 else SERVER
    asked = {"text_input": sys.argv[1], "max_tokens": 1}
    request = urllib.request.Request(  # noqa: S310  it is always http
        f"{server}/v2/models/{MODEL}/generate_stream",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        # Without this a model that is loading would be asked, and counted as a failed request.
        OPENER.open(f"{server}/v2/health/ready", timeout=3).close()
        with OPENER.open(request, timeout=15) as answer:
            events = [line[5:] for line in answer if line.startswith(b"data:")]
        answers = [json.loads(event) for event in events]
    except (OSError, ValueError) as error:
        print(f"no token: {error}", file=sys.stderr)
        return 1
    if any("error" in given for given in answers):
        print(f"no token: {answers[-1]['error']}", file=sys.stderr)
        return 1
    if not any("text_output" in given for given in answers):
        print("no token: the stream ended without one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
