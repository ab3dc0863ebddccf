# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The rule for everything that is written, and files and folders that are moved into place when they are complete.

The rule of every command and script: an output is never an input, two results never share a name, and what exists is
replaced only on request. `output_names` gives the names, `check_outputs` refuses the rest, before the work begins.

What a killed process left is put right by the next one that writes the same output: an old folder that was on its way
out moves back, and unfinished parts are removed. Parts of a process that is still at work are locked, and stay.
"""

import errno
import glob
import math
import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError


if sys.platform != "win32":
    import fcntl


def output_names(
    files: Sequence[str | os.PathLike], sources: Sequence[str | os.PathLike], endings: Sequence[str]
) -> list[list[Path]]:
    """Names of the files that are written for each input file, no two the same.

    They are the path below the folder that was named, or the name of a file that was named itself. Where two inputs
    would share a name, as x.png and x.jpg do, the later one gets a number: x, x-2.

    Args:
        files: The inputs.
        sources: The files and folders that were named, in which `files` were found.
        endings: What takes the place of an input's extension, an output each, for example "-pca.png".

    Returns:
        For each input a path per ending, relative to the folder of the outputs.
    """
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    taken, counts = set[str](), dict[str, int]()
    names: list[list[Path]] = []
    for file in map(Path, files):
        inside = (file.relative_to(folder) for folder in folders if file.is_relative_to(folder))
        base = next(inside, Path(file.name)).with_suffix("")
        while True:
            number = counts[_folded(base)] = counts.get(_folded(base), 0) + 1
            stem = base.name if number == 1 else f"{base.name}-{number}"
            names.append([base.with_name(stem + ending) for ending in endings])
            folded = {_folded(name) for name in names[-1]}
            if taken.isdisjoint(folded):
                break
            names.pop()
        taken |= folded
    return names


def _folded(path: Path) -> str:
    # the same for names that some file systems take for one
    return unicodedata.normalize("NFC", str(path)).casefold()


def check_outputs(
    outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike] = (), overwrite: bool = False
) -> None:
    """Refuse to write over an input, and over files and filled folders that exist.

    Args:
        outputs: Files and folders to write.
        inputs: What is read; recognised also through links and in other spellings.
        overwrite: Whether an output that exists may be replaced, unless it is an input.

    Raises:
        FileExistsError: An output exists.
        ValueError: An output is an input.
    """
    read = {_identity(path) for path in inputs} - {None}
    for output in map(Path, outputs):
        if not os.path.lexists(output):
            continue
        if _identity(output) in read:
            raise ValueError(f"{output} is also an input, which is never replaced: give another output.")
        if not overwrite and not (output.is_dir() and not any(output.iterdir())):
            raise FileExistsError(f"{output} already exists: give another output, or --overwrite to replace it.")


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # a dangling link, or the name of a model on the Hub
        return None
    return found.st_dev, found.st_ino


def full_disk(
    error: BaseException | None, folder: Path, size: float, what: str, free: int | None = None
) -> str | None:
    """What to say of an error if a full disk is behind it: which disk, how much is needed, and how much is free.

    Args:
        error: The error; its causes are looked at, too.
        folder: The absolute path of the folder to which something was written.
        size: What it takes, in bytes.
        what: What it is.
        free: The free bytes; by default those that are free now.

    Returns:
        A sentence without its full stop; `None` if the cause is another one.
    """
    free = _free_bytes(folder) if free is None else free
    while error is not None:
        # safetensors only passes the system's words on, and torch not even these
        words = re.search(r"\(os error (\d+)\)", str(error))
        number = int(words[1]) if words else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or ("inline_container" in str(error) and free < size):
            break
        error = error.__cause__ or error.__context__
    else:
        return None
    disk = next(path for path in (folder, *folder.parents) if path.is_mount())
    return f"The disk at {disk} is full: {what} needs {_bytes(size)} in {folder}, and {_bytes(free)} are free"


def _free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{math.ceil(count / 1e3)} kB"


@contextmanager
def naming_full_disk(output: str | os.PathLike, size: float) -> Iterator[None]:
    """Turn what a full disk raises into an `OSError` that says so, with the `size` of the output in bytes."""
    output = Path(output).absolute()
    free = _free_bytes(output.parent)  # unfinished files that are still open would not count
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if (sentence := full_disk(error, output.parent, size, output.name, free)) is None:
            raise
        raise OSError(f"{sentence}. Make room there, or choose another output.") from error


@contextmanager
def staged_file(path: str | os.PathLike) -> Iterator[Path]:
    """An empty file beside `path` that takes its place if the block succeeds, and is removed if it fails.

    It has the name of `path`, in a hidden folder of its own.

    Raises:
        FileExistsError: `path` is a device or a pipe.
        IsADirectoryError: `path` is a folder.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name for the checkpoint, as {path}/EUPE.pt.")
    if path.exists() and not path.is_file():  # /dev/null, which root could replace
        raise FileExistsError(f"{path} is a device or a pipe, which is not replaced: give the name of a file.")
    with scratch_folder(path) as scratch:
        file = scratch / path.name
        file.touch()
        yield file
        _follow_umask(file)
        file.replace(path)


def _follow_umask(*files: Path) -> None:
    # safetensors creates files that only their owner can read
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)


@contextmanager
def staged_folder(path: str | os.PathLike, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place if the block succeeds.

    Args:
        path: The folder to write.
        check: Called with `path` if it exists, first and last; raises `FileExistsError` if it must not be replaced.

    Raises:
        FileExistsError: `path` is a file or the working directory, or `check` refuses it.
    """
    path = Path(path).absolute()

    def check_place() -> None:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; give a folder for the converted model.")
        if path.is_dir():
            check(path)
            if path.samefile(os.curdir):
                raise FileExistsError(f"{path} is the working directory: give a folder in it.")

    with scratch_folder(path, check_place) as scratch:
        new, old = scratch / "new", scratch / "old" / path.name
        new.mkdir()
        old.parent.mkdir()
        yield new
        _follow_umask(*new.iterdir())
        with _locked(path.parent):
            check_place()
            try:
                if path.exists():
                    path.rename(old)
                new.rename(path)
            except BaseException:
                _restore(scratch)
                raise


@contextmanager
def scratch_folder(path: Path, check_place: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A locked folder beside `path`, which is removed in the end. First, what killed processes left is put right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:40]}."  # a whole name could make one that is too long
    with ExitStack() as lock:
        with _locked(path.parent):
            for left in path.parent.glob(f"{glob.escape(prefix)}*.part"):
                with _locked(left, wait=False) as is_left:
                    if is_left:
                        _restore(left)
                        shutil.rmtree(left, ignore_errors=True)
            check_place()
            scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
            lock.enter_context(_locked(scratch))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _restore(scratch: Path) -> None:
    """Move a folder back that was moved out of the way for one that did not come."""
    for old in (scratch / "old").glob("*"):
        place = scratch.parent / old.name
        if not place.exists():
            old.rename(place)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with its process. Without `wait`, the value says whether it was free.

    Some file systems have no locks: then nothing waits, and no folder counts as free.
    """
    descriptor, is_locked = None, False
    try:
        if sys.platform != "win32":
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = True
    except OSError:
        is_locked = False
    try:
        yield is_locked
    finally:
        if descriptor is not None:
            if is_locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # worker processes may have inherited the descriptor
            os.close(descriptor)
