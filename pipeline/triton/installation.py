"""Finds the tritonserver inside the nvidia-pytriton wheel and makes it runnable.

The wheel's layout suits PyTriton only: the Python backend and its stubs lie in different folders,
while the server looks for the stub next to the backend. A folder of symbolic links puts that right
without touching the installation.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.dependencies import install
from pipeline.errors import MissingDependencyError, ServerError
from pipeline.triton.guardian import STUB
from pipeline.triton.surroundings import passed_on


@dataclass(frozen=True)
class Installation:
    """The pieces of one tritonserver.

    Attributes:
        binary: The server.
        backend: Folder with the Python backend's library.
        stub: The process that runs a Python model, built for this interpreter's version.
        libraries: Folder of the libraries that come with the wheel.
        libpython: The shared library of this interpreter, or None when the wheel bundles it.
    """

    binary: Path
    backend: Path
    stub: Path
    libraries: Path
    libpython: Path | None

    @classmethod
    def find(cls) -> Installation:
        """Finds the wheel of the running interpreter without importing it.

        Raises:
            MissingDependencyError: nvidia-pytriton is not installed.
            ServerError: It has no stub for this Python, or this Python has no shared library.
        """
        spec = importlib.util.find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                "nvidia-pytriton is not installed",
                why="Its wheel holds the tritonserver that is run here",
                fix=install("cpu"),
            )
        package = Path(spec.origin).parent
        root = package / "tritonserver"
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        stub = root / "python_backend_stubs" / version / STUB
        if not stub.is_file():
            known = sorted(p.name for p in stub.parent.parent.glob("*"))
            raise ServerError(
                f"nvidia-pytriton has no Python stub for Python {version}",
                where=str(stub.parent.parent),
                why=f"It has stubs for {', '.join(known) or 'no version'}",
                fix="Use Python 3.10, 3.11 or 3.12",
            )
        return cls(
            binary=root / "bin" / "tritonserver",
            backend=root / "backends" / "python",
            stub=stub,
            libraries=package.parent / "nvidia_pytriton.libs",
            libpython=_libpython(stub.parent, version),
        )

    def link(self, runtime: Path, backends: Mapping[str, Path] | None = None) -> None:
        """Fills ``runtime`` with backends, ``lib`` and a Python environment.

        Args:
            backends: Folders of more backends than Python's, by name: each holds a library
                ``libtriton_NAME.so``, or a ``model.py`` that serves all its models.
        """
        backend, lib = runtime / "backends" / "python", runtime / "lib"
        backend.mkdir(parents=True)
        lib.mkdir()
        for path in (*self.backend.glob("*.so"), *self.backend.glob("*.py"), self.stub):
            (backend / path.name).symlink_to(path)
        for name, folder in (backends or {}).items():
            (runtime / "backends" / name).symlink_to(folder)
        if backends:
            # For a backend that is a model.py Triton wants the library itself, no link to it.
            for path in self.backend.glob("*.so"):
                (backend / path.name).unlink()
                shutil.copy(path, backend)
        _write_environment(runtime)
        if self.libpython:
            (lib / self.libpython.name).symlink_to(self.libpython)

    def environment(
        self, runtime: Path, base: Mapping[str, str], names: Iterable[str] = ()
    ) -> dict[str, str]:
        """Composes the server's environment; see :func:`pipeline.triton.surroundings.passed_on`.

        Args:
            runtime: The folder that :meth:`link` filled.
            base: The environment to choose from.
            names: Of further variables that the server is to have.
        """
        path = f"{runtime / 'bin'}:{sys.prefix}/bin:{base.get('PATH', os.defpath)}"
        libraries = [str(runtime / "lib"), str(self.libraries), base.get("LD_LIBRARY_PATH", "")]
        return {
            **passed_on(base, names),
            # The stub's embedded interpreter finds its packages through PATH and nothing else.
            "PATH": path,
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }


def _write_environment(runtime: Path) -> None:
    """Makes ``runtime`` a virtual environment with the packages of the running one.

    The stub's interpreter ignores every PYTHON* variable. Only a file that its site module reads
    keeps it from writing bytecode caches into the repository, whose manifest does not list them.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = runtime / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (runtime / "bin").mkdir()
    (runtime / "bin" / "python3").symlink_to(sys.executable)
    (runtime / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n", encoding="utf-8")
    lines = ["import sys; sys.dont_write_bytecode = True"]
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    lines += [f"import site; site.addsitedir({path!r})" for path in paths]
    (packages / "environment.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _libpython(stub_folder: Path, version: str) -> Path | None:
    name = f"libpython{version}.so.1.0"
    if (stub_folder / name).is_file():
        return stub_folder / name
    prefixes = (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib")
    for prefix in filter(None, prefixes):
        if (Path(prefix) / name).is_file():
            return Path(prefix) / name
    if any((Path(folder) / name).is_file() for folder in _system_folders()):
        # The dynamic linker finds it by itself.
        return None
    raise ServerError(
        f"{name} is missing",
        where=sys.executable,
        why="Triton's Python stub is linked against the interpreter's shared library",
        fix=f"Install libpython{version}, or use a Python built with --enable-shared",
    )


def _system_folders() -> tuple[str, ...]:
    machine = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    return (f"/usr/lib/{machine}", f"/lib/{machine}", "/usr/lib64", "/usr/lib", "/usr/local/lib")
