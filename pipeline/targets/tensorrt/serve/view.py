"""A repository served from another place than ``/models``."""

from __future__ import annotations

from pathlib import Path

from pipeline.targets.tensorrt.serve.container import ENGINE, MOUNT


def link_view(repository: Path, view: Path) -> None:
    """Fills a directory with links to a repository, whose engine's path is the real one.

    The C++ backend is told an absolute path below ``/models``. In place, the repository may be
    anywhere and must not be changed, so the server gets a directory of links and one file of its
    own, the engine model's ``config.pbtxt``.

    Args:
        repository: The repository.
        view: An empty directory.
    """
    repository = repository.resolve()
    for entry in repository.iterdir():
        if entry.name != ENGINE and entry.is_dir():
            (view / entry.name).symlink_to(entry)
    model = view / ENGINE
    model.mkdir()
    for entry in (repository / ENGINE).iterdir():
        if entry.name != "config.pbtxt":
            (model / entry.name).symlink_to(entry)
    text = (repository / ENGINE / "config.pbtxt").read_text(encoding="utf-8")
    text = text.replace(f'"{MOUNT}/', f'"{repository}/')
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
