"""Serves a build on a Ray cluster: Ray places the servers, scales them and replaces them.

``serve run pipeline.rayserve:app repository=build/NAME`` starts it, and so does a config whose
``import_path`` is ``pipeline.rayserve:app``. An ingress deployment is the OpenAI gateway; each
replica of a second one supervises one tritonserver and hands token ids over.
"""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """Builds the application that Ray Serve deploys.

    Args:
        args: Fields of :class:`pipeline.rayserve.options.Options`.

    Raises:
        UsageError: An argument is wrong.
        RepositoryError: There is no repository, or it does not say what the sizes need.
        MissingDependencyError: ray[serve] is not installed.
    """
    # Whoever asks for the manifests of another kind needs none of this.
    from pipeline.rayserve.application import build

    return build(args)
