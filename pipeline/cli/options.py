"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.invocation import Invocation, Output
from pipeline.errors import UsageError
from pipeline.reading.files import impossible, shortened

if TYPE_CHECKING:
    from pipeline.serving import Addresses
    from trtllm_client import Tls

__all__ = ["Invocation", "Output"]  # from here, as all that commands share

RecipeArgument = Annotated[
    Path, typer.Argument(help="The recipe, a YAML file.", autocompletion=complete.recipes)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. compile.max_seq_len=256."
    ),
]
BuildDirOption = Annotated[
    Path, typer.Option("--build-dir", help="Where the store and the outputs go.")
]

PriceOption = Annotated[
    float | None, typer.Option("--price", help="Price of an hour, instead of cost.price_per_hour.")
]
UtilizationOption = Annotated[
    float | None,
    typer.Option("--utilization", help="Busy share of the time, instead of cost.utilization."),
]


def _enter(directory: Path | None) -> Path | None:
    if directory is not None:
        refuse_impossible(directory)
        try:
            os.chdir(directory)
        except (OSError, ValueError) as error:
            raise UsageError(
                "this folder cannot be worked in",
                where=f"--directory {directory}",
                why=getattr(error, "strerror", None) or str(error),
                fix="Name a folder that exists",
            ) from error
    return directory


DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        "-C",
        metavar="DIR",
        help="Work in this folder: the other paths of the command begin there.",
        callback=_enter,
        is_eager=True,
    ),
]


def _hand_on(words: list[str] | None) -> list[str] | None:
    if words:
        from pipeline.targets.handed_on import hand_on

        hand_on(words)
    return words


EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Hand an environment variable on to the server or the GPU container; repeatable.",
        callback=_hand_on,
    ),
]


def refuse_impossible(path: Path) -> None:
    """Refuses a path that can name neither a file nor a folder, before anything waits for it.

    Raises:
        UsageError: Its name is impossible, its links go round in a circle, or it is a pipe or a
            device.
    """
    if why := impossible(path):
        raise UsageError(
            "this path cannot be used",
            where=shortened(path),
            why=why,
            fix="Name a regular file or a folder",
        )


def new_file(path: Path | None) -> Path | None:
    """Fails early if the output file cannot be created.

    Raises:
        UsageError: Its folder does not exist, or it is a folder itself.
    """
    if path is not None:
        refuse_impossible(path)
    if path is not None and path.is_dir():
        raise UsageError("this is a folder", where=str(path), fix="Name a file in it")
    if path is not None and not path.parent.is_dir():
        raise UsageError(
            "the folder of this file does not exist",
            where=str(path),
            fix=f"Create {path.parent} first, or name another file",
        )
    return path


def served_path(path: Path | None) -> Path | None:
    """Finds the repository that a path names, which may be that of a build's folder.

    Raises:
        UsageError: The build has none that passed.
    """
    if path is None:
        return None
    from pipeline.store.deployed import find_repository

    return find_repository(path)


SERVER = "Server"
"""The panel of a help that options about a server stand in."""


@dataclass(frozen=True)
class Certificates:
    """How to talk to a server, but for its key.

    Attributes:
        tls_root: The authority to trust.
        tls_cert: The client's certificate.
        tls_key: The client's key.
        tls_name: The name in the server's certificate.
        header: gRPC metadata, as NAME=VALUE.
    """

    tls_root: Annotated[
        Path | None,
        typer.Option(help="PEM of the authority to trust.", rich_help_panel=SERVER),
    ] = None
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="PEM of the client certificate.", rich_help_panel=SERVER),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option(help="PEM of the client's key.", rich_help_panel=SERVER),
    ] = None
    tls_name: Annotated[
        str | None,
        typer.Option(
            help="Name in the server's certificate, if not its host.", rich_help_panel=SERVER
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="NAME=VALUE",
            help="gRPC metadata; repeatable.",
            rich_help_panel=SERVER,
        ),
    ] = None

    @property
    def tls(self) -> Tls | None:
        """Certificates; None without any TLS option."""
        from trtllm_client import Tls

        given = (self.tls_root, self.tls_cert, self.tls_key, self.tls_name)
        return Tls(*given) if any(given) else None

    def metadata(self, key_from: str | None) -> dict[str, str]:
        """Returns gRPC metadata by name, the key among them.

        Args:
            key_from: The environment variable with the key that the server asks for, if it does.

        Raises:
            UsageError: One has no ``=``, or the variable with the key is not set.
        """
        pairs = [text.partition("=") for text in self.header or ()]
        for name, separator, _ in pairs:
            if not separator:
                # The text may be a secret, so it is not repeated.
                raise UsageError("--header needs NAME=VALUE", fix="Write --header name=value")
            del name
        given = {name: value for name, _, value in pairs}
        if key_from is not None:
            from pipeline.triton.access import KEY_HEADER, key_of

            given[KEY_HEADER] = key_of(os.environ, key_from) or ""
        return given


@dataclass(frozen=True)
class Credentials(Certificates):
    """How to talk to a server.

    Attributes:
        key_from: The environment variable with the key that the server asks for.
    """

    key_from: Annotated[
        str | None,
        typer.Option(
            "--key-from",
            metavar="NAME",
            help="Send the key that this environment variable holds, as serve --key-from asks.",
            rich_help_panel=SERVER,
        ),
    ] = None

    @property
    def headers(self) -> dict[str, str]:
        """gRPC metadata by name, the key among them.

        Raises:
            UsageError: One has no ``=``, or the variable with the key is not set.
        """
        return self.metadata(self.key_from)


@dataclass(frozen=True)
class Connection:
    """Where a server is and how to talk to it.

    Attributes:
        url: A running server's address.
        repository: What to start a server on instead.
        model: The Triton model that takes the requests.
        timeout: Seconds for one request.
        credentials: The options about TLS and headers.
    """

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="gRPC address of a running server, e.g. localhost:8001; http://HOST:PORT of one "
            "with OpenAI's API.",
            rich_help_panel=SERVER,
        ),
    ] = None
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            help="Start a server on build/NAME, or a repository by itself, instead of using --url.",
            callback=served_path,
            rich_help_panel=SERVER,
        ),
    ] = None
    model: Annotated[
        str, typer.Option(help="tensorrt_llm_bls or ensemble.", rich_help_panel=SERVER)
    ] = "tensorrt_llm_bls"
    timeout: Annotated[
        float, typer.Option(help="Seconds for one request.", rich_help_panel=SERVER)
    ] = 120.0
    credentials: Credentials = Credentials()

    @property
    def tls(self) -> Tls | None:
        """Certificates; None without any TLS option."""
        return self.credentials.tls

    @property
    def headers(self) -> dict[str, str]:
        """gRPC metadata by name.

        Raises:
            UsageError: One has no ``=``.
        """
        return self.credentials.headers

    @contextmanager
    def address(self) -> Iterator[str]:
        """Yields the server's gRPC address, for as long as it is needed; see :meth:`addresses`."""
        with self.addresses() as addresses:
            yield addresses.grpc

    @contextmanager
    def addresses(self) -> Iterator[Addresses]:
        """Yields the server's addresses, for as long as they are needed.

        Raises:
            UsageError: It is not clear where the server is or how to talk to it.
            ServerError: The server did not start.
        """
        from pipeline.cli.console import print_warning
        from pipeline.serving import reachable

        if self.repository is not None and self.tls:
            raise UsageError(
                "a server started on --repository has no TLS",
                fix="Leave the TLS options out, or start it with serve and give --url",
            )
        print_warning(self.repository)
        with reachable(self.url, self.repository) as addresses:
            yield addresses
