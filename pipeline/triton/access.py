"""Who may talk to a server: its certificates, the authority of its clients, and a key."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError

KEY_NAME = "api-key"
"""What Triton calls the key; the header of HTTP."""

KEY_HEADER = f"triton-grpc-protocol-{KEY_NAME}"
"""The gRPC metadata that carries the key, as docs/customization_guide/inference_protocols.md of
Triton's server has it."""

GUARDED_APIS = "inference,metadata,model-config,statistics"
"""What the key opens. Health stays open for probes, which are given no secrets."""

_KEY = re.compile(r"[!-~]{16,512}")


@dataclass(frozen=True)
class ServerTls:
    """Certificates of a server's gRPC endpoint, as PEM files.

    Attributes:
        certificate: The server's, with those between it and its authority.
        private_key: Its key, without a password.
        client_authority: Whoever signed the certificates of those who may connect; None asks
            clients for none.
    """

    certificate: Path
    private_key: Path
    client_authority: Path | None = None

    def check(self) -> None:
        """Finds what Triton would say in its log alone, or never.

        Raises:
            UsageError: A file cannot be read, is no certificate or key, or the two do not belong
                together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = f"--tls-cert {self.certificate} --tls-key {self.private_key}"
        try:
            # Without a password at hand OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certificate, self.private_key, password="")
        except (OSError, ValueError) as error:
            raise _unusable("certificate and key", pair, error) from error
        if self.client_authority is None:
            return
        try:
            context.load_verify_locations(self.client_authority)
        except (OSError, ValueError) as error:
            where = f"--tls-client-ca {self.client_authority}"
            raise _unusable("clients' authority", where, error) from error

    def flags(self) -> list[str]:
        """Returns tritonserver's flags for them; of each file the absolute path."""
        flags = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate.resolve()}",
            f"--grpc-server-key={self.private_key.resolve()}",
        ]
        if self.client_authority is not None:
            flags += [
                "--grpc-use-ssl-mutual=true",
                f"--grpc-root-cert={self.client_authority.resolve()}",
            ]
        return flags


def _unusable(what: str, where: str, error: Exception) -> UsageError:
    why = (isinstance(error, OSError) and error.strerror) or str(error)
    return UsageError(
        f"the server's {what} cannot be used",
        where=where,
        why=why,
        fix="Give PEM files that this user can read: a certificate and the unencrypted key that "
        "belongs to it; trtllm-pipeline certificates DIR makes a set to try",
    )


def key_of(environment: Mapping[str, str], name: str | None) -> str | None:
    """Reads a key from the environment.

    Args:
        environment: The environment.
        name: The variable that holds it; None for no key.

    Raises:
        UsageError: The variable is not set, or holds nothing that could be a key.
    """
    if name is None:
        return None
    key = environment.get(name)
    where = f"--key-from {name}"
    if key is None:
        raise UsageError(
            "this variable is not in the environment",
            where=where,
            why="The option takes the name of a variable, not the key, which would be in the "
            "process list",
            fix=f'Set it first: export {"KEY" if not name.isidentifier() else name}="$(openssl '
            'rand -hex 32)"',
        )
    if not _KEY.fullmatch(key):
        # What it holds may be a secret all the same, so it is not repeated.
        raise UsageError(
            "this variable holds no key",
            where=where,
            why="A key has 16 to 512 characters, of ASCII and without spaces",
            fix="Make one with: openssl rand -hex 32",
        )
    return key
