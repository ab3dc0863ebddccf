# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The images below a folder: one list, which is counted, checked and loaded."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL.Image


PIL.Image.init()
# What Pillow opens, and formats that only some of its builds open: these files are listed too, so that they are named
# as unreadable and not passed over.
PICTURES = frozenset(
    {end for end, kind in PIL.Image.EXTENSION.items() if kind in PIL.Image.OPEN} | {".avif", ".heic", ".heif", ".jxl"}
)


def walk(folder: str | os.PathLike) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from this one down with the names of its files, sorted; none that begin with a dot.

    Linked folders are followed, unless they lead back to a folder that they are in.

    Raises:
        OSError: A folder can't be listed.
    """
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(Path(folder), ())]
    while waiting:
        place, above = waiting.pop()
        status = place.stat()
        if (identity := (status.st_dev, status.st_ino)) in above:
            continue
        with os.scandir(place) as entries:
            visible = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        yield place, [name for name, is_folder in visible if not is_folder]
        waiting += [(place / name, (*above, identity)) for name, is_folder in reversed(visible) if is_folder]


def _is_folder(entry: os.DirEntry) -> bool:
    # entry.is_dir() raises an error for a link to itself
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def images_below(folder: str | os.PathLike, ends: frozenset[str] = PICTURES) -> list[Path]:
    """The images below a folder, sorted: files whose extension says so. Links that lead nowhere are among them.

    Args:
        folder: See `walk` for what counts as below it.
        ends: The extensions, in lower case.
    """
    paths = [where / name for where, names in walk(folder) for name in names if Path(name).suffix.lower() in ends]
    return sorted(path for path in paths if path.is_file() or path.is_symlink())


def find_images(sources: Sequence[str | os.PathLike], left_out: str | os.PathLike | None = None) -> list[Path]:
    """List image files, each once: files as given, and all images below folders, sorted.

    Args:
        sources: Files and folders. In a folder, files whose extension Pillow knows count as images, see `walk` for
            links; files and folders that begin with a dot do not.
        left_out: A folder whose images do not count, if it lies below one of the folders: the one for the output.

    Raises:
        FileNotFoundError: A file or folder does not exist.
        OSError: A folder can't be listed.
        ValueError: A folder has no images, or `sources` is empty.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            images = images_below(source)
            if left_out is not None and Path(left_out).is_dir() and not Path(left_out).samefile(source):
                output = Path(left_out).resolve()
                outside = {at for at in {path.parent for path in images} if not at.resolve().is_relative_to(output)}
                images = [path for path in images if path.parent in outside]
            if not images:
                raise ValueError(f"There are no images in {source}.")
            found.update(dict.fromkeys(images))
        elif source.is_file():
            found[source] = None
        else:
            raise FileNotFoundError(f"There is no file or folder {source}.")
    if not found:
        raise ValueError("No images given: name files or folders.")
    return list(found)
