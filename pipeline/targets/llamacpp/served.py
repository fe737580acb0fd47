"""How a build with a GGUF file is served: by llama.cpp's own server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.targets.llamacpp.measure import FILE
from pipeline.targets.self_served import (
    ENGINE,
    SelfServedTarget,
    ServingSettings,
    refuse_options_of_triton,
)

if TYPE_CHECKING:
    from pipeline.targets.llamacpp.server import LlamaCppServer
    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import ServerOptions


class ServedByLlamaCpp(SelfServedTarget):
    """Serves ``engine/model.gguf`` of a repository.

    Of ``compile`` it reads ``max_batch_size``, the requests that are generated together,
    ``max_seq_len``, the tokens that each of them may have, and ``max_num_tokens``, those of a step;
    and of the target's own options ``threads`` and ``kv_cache``, where they are.
    """

    program = "llama.cpp"
    rounds_activations = False

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> LlamaCppServer:
        """Makes llama.cpp's server, which answers OpenAI's API on the HTTP port.

        Raises:
            RepositoryError: The repository does not say what it was built for.
            UsageError: An option was given that this server does not know.
        """
        from pipeline.targets.handed_on import named
        from pipeline.targets.llamacpp.process import Settings
        from pipeline.targets.llamacpp.server import EXIT_TIMEOUT_S, LlamaCppServer

        refuse_options_of_triton(repository, options)
        built = ServingSettings.read(repository)
        own: dict[str, Any] = dict(built.compile.get("llamacpp") or {})
        grace = EXIT_TIMEOUT_S if options.exit_timeout_s is None else options.exit_timeout_s
        return LlamaCppServer(
            Settings(
                model=str((repository / ENGINE / FILE).absolute()),
                name=built.name,
                host=options.host,
                port=options.http_port,
                slots=int(built.compile["max_batch_size"]),
                context=int(built.compile["max_seq_len"]),
                batch=int(built.compile["max_num_tokens"]),
                threads=int(own.get("threads") or len(os.sched_getaffinity(0))),
                kv_cache=str(own.get("kv_cache") or "f16"),
                grace_s=float(grace),
                key=options.key or "",
            ),
            log_file=log,
            watchdog=options.watchdog,
            hung_after_s=options.hung_after_s,
            give_up_after_s=options.give_up_after_s,
            variables=named(),
        )
