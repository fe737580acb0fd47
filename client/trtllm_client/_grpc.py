"""gRPC, and the KServe messages that tritonclient carries."""

from __future__ import annotations

import os
from typing import Any

# gRPC's C library writes its own account of every failed connection to stderr, next to the error
# that is raised for it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import grpc
    import grpc.aio as grpc_aio
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
except ImportError as error:
    msg = (
        f"trtllm_client needs tritonclient and gRPC ({error}). "
        "Install them: pip install 'tritonclient[grpc]'"
    )
    # Named, so that a caller can tell it from an absent package of its own.
    raise ImportError(msg, name="trtllm_client") from error

__all__ = ["INFER", "GRPCInferenceServiceStub", "Message", "grpc", "grpc_aio", "messages"]

# The generated classes have no types; the alias says where one is meant.
Message = Any

INFER = messages.ModelInferRequest
