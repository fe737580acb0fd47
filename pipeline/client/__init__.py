"""The client's former place; it is a distribution of its own now, ``trtllm_client``."""

import warnings

from trtllm_client import *  # noqa: F403
from trtllm_client import __all__ as __all__

warnings.warn(
    "pipeline.client has moved: import trtllm_client instead", DeprecationWarning, stacklevel=2
)
