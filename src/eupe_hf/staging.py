# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are written beside their place, and moved there when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block succeeds, and is removed if it fails."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name for the checkpoint, as {path}/EUPE.pt.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        _follow_umask(Path(name))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _follow_umask(*files: Path) -> None:
    # mkstemp and safetensors create files that only their owner can read
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)


@contextmanager
def staged_folder(path: str | os.PathLike, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place if the block succeeds.

    Args:
        path: The folder to write.
        check: Called with `path` if it exists; raises `FileExistsError` if it must not be replaced.

    Raises:
        FileExistsError: `path` is a file, or `check` refuses it.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; give a folder for the converted model.")
    if path.is_dir():
        check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        _follow_umask(*new.iterdir())
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two renames
            old.rename(path)
        shutil.rmtree(scratch, ignore_errors=True)
