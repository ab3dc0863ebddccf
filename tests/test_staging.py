# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Outputs that are moved into place: what interrupted and killed writers leave, and several writers at once."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eupe_hf.staging import staged_file, staged_folder


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and needs locks of folders")


def write_folder(path: Path, text: str, stop: Callable[[], None] = lambda: None) -> None:
    with staged_folder(path, check=lambda folder: None) as folder:
        (folder / "text").write_text(text)
        stop()


def write_file(path: Path, text: str, stop: Callable[[], None] = lambda: None) -> None:
    with staged_file(path) as file:
        file.write_text(text)
        stop()


WRITERS = {"folder": write_folder, "file": write_file}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def content(path: Path) -> str:
    return (path / "text" if path.is_dir() else path).read_text()


def kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own. Returns its id."""
    if child := os.fork():
        return child
    try:
        work()
    except BaseException:  # it must not run on as a second pytest
        os._exit(1)
    os._exit(0)


def ending(child: int) -> int:
    """The exit code of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@each_writer
@pytest.mark.parametrize("name", ["output", ".hidden", "a[b]*", "ü" * 120, "x" * 250])
def test_what_a_killed_writer_left_is_cleared_by_the_next(write: Callable, name: str, tmp_path: Path) -> None:
    output = tmp_path / name
    write(output, "old")
    for _ in range(2):
        assert ending(in_child(lambda: write(output, "new", kill_this_process))) == -signal.SIGKILL
    assert content(output) == "old"
    assert len(list(tmp_path.iterdir())) > 1  # the killed ones left something
    write(output, "newer")
    assert content(output) == "newer"
    assert list(tmp_path.iterdir()) == [output]


def test_folder_on_its_way_out_comes_back_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    write_folder(output, "old")
    rename = Path.rename

    def rename_or_die(path: Path, target: Path) -> Path:
        return kill_this_process() if path.name == "new" else rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_die)
        assert ending(in_child(lambda: write_folder(output, "new"))) == -signal.SIGKILL
    assert not output.exists()  # between the two renames
    seen = []

    def fail() -> None:
        seen.append(content(output))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(output, "newer", fail)
    assert seen == ["old"]
    assert content(output) == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_old_folder_comes_back_if_the_new_one_can_not_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    write_folder(output, "old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space left"):
        write_folder(output, "new")
    assert content(output) == "old"
    assert list(tmp_path.iterdir()) == [output]


@each_writer
def test_parts_of_a_writer_at_work_stay(write: Callable, tmp_path: Path) -> None:
    output = tmp_path / "output"
    write(output, "outer", lambda: write(output, "inner"))  # the inner one ends first
    assert content(output) == "outer"
    assert list(tmp_path.iterdir()) == [output]


def test_what_was_left_for_another_output_goes_to_its_own_place(tmp_path: Path) -> None:
    left = tmp_path / ".a.b.killed.part" / "old" / "a.b"  # of "a.b", whose parts look like those of "a"
    left.mkdir(parents=True)
    (left / "text").write_text("old")
    write_folder(tmp_path / "a", "new")
    assert content(tmp_path / "a") == "new"
    assert content(tmp_path / "a.b") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.b"]


@each_writer
@pytest.mark.parametrize("processes", [2, 4])
def test_writers_at_once_leave_one_whole_output(write: Callable, processes: int, tmp_path: Path) -> None:
    output = tmp_path / "output"

    def write_often(number: int) -> None:
        for _ in range(25):
            write(output, str(number) * 1000)
            if write is write_file and len(content(output)) != 1000:  # a folder is away for a moment between renames
                raise AssertionError

    children = [in_child(lambda number=number: write_often(number)) for number in range(processes)]
    assert [ending(child) for child in children] == [0] * processes
    assert content(output) in {str(number) * 1000 for number in range(processes)}
    assert list(tmp_path.iterdir()) == [output]


def test_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match=r"is the working directory.*give a folder in it"):
        write_folder(Path(), "new")
    assert list(tmp_path.iterdir()) == []
