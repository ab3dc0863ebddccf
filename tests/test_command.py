# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `eupe` command as a process: Ctrl-C, closed streams, odd paths and locales, few file handles, full disks."""

import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import tiny_config
from PIL import Image
from safetensors import SafetensorError
from transformers.utils import logging

import eupe_command
import eupe_hf.cli
from eupe_hf import EupeForSegmentation, EupeImageProcessorPil, EupeModel
from eupe_hf.features import extraction, read_features


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and bytes in paths")

FORK = multiprocessing.get_context("fork")
_SYSTEM = "Error while serializing: I/O error: No space left on device (os error 28)"
_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ODD = os.fsdecode(b"odd\xff")
NOT_UTF_8 = "cannot be used: its bytes are not UTF-8, or the locale is not. Rename it, or set PYTHONUTF8=1."
COMMAND = [sys.executable, "-W", "ignore", "-m", "eupe_command"]


class Ended(NamedTuple):
    """A process that has ended; `err` without progress bars."""

    code: int | None
    out: str
    err: str


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an encoder, a task model and three images."""
    torch.manual_seed(0)
    for name, model_class in (("encoder", EupeModel), ("segmenter", EupeForSegmentation)):
        model_class(tiny_config("vit")).save_pretrained(tmp_path / name)
        EupeImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (i, 80 * i, 9)).save(tmp_path / "images" / f"{i}.png")
    logging.disable_progress_bar()  # its lock is shared with forks
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fork(*arguments: str, before: Callable[[], object] = lambda: None) -> multiprocessing.process.BaseProcess:
    """Start the command in a process that has imported everything. Its output goes to files in the folder."""

    def target() -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Path("stdout").open("w") as sys.stdout, Path("stderr").open("w") as sys.stderr:
            sys.argv = ["eupe", *arguments]
            before()
            eupe_command.main()

    process = FORK.Process(target=target)
    process.start()
    return process


def end(process: multiprocessing.process.BaseProcess) -> Ended:
    process.join(60)
    out, err = Path("stdout"), Path("stderr")
    ended = Ended(process.exitcode, out.read_text(errors="surrogateescape"), without_bars(err.read_text()))
    out.unlink()
    err.unlink()
    return ended


def without_bars(err: str) -> str:
    return "".join(f"{line}\n" for line in err.splitlines() if line and not line.startswith("features:"))


def eupe(*arguments: str, before: Callable[[], object] = lambda: None) -> Ended:
    return end(fork(*arguments, before=before))


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Start a process of its own, which imports everything."""
    source = str(Path(eupe_hf.cli.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "errors": "surrogateescape"}
    return subprocess.Popen(command, env=variables, **pipes)


def run(script: str, **environment: str) -> Ended:
    """Run a shell script, in which "$@" is the command."""
    process = start(["sh", "-c", script, "sh", *COMMAND], **environment)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, without_bars(err))


# ---- Ctrl-C ----


@pytest.mark.parametrize("arguments", ["list", "features images --output out.parquet"])
def test_interrupt_while_modules_are_imported_ends_without_a_word(arguments: str, place: Path) -> None:
    for delay in (0.2, 0.6, 1.2):
        process = start(COMMAND + arguments.split())
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 130
    assert {path.name for path in place.iterdir()} == {"encoder", "segmenter", "images"}


def test_interrupted_features_leave_no_half_file_and_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, encode = FORK.Event(), extraction.encode_images
    arguments = ("features", "images", "--model", "encoder", "--output", "out.parquet", "--batch-size", "1")

    def wait(*arguments: object) -> torch.Tensor:
        computing.set()
        time.sleep(60)
        raise AssertionError

    for workers in ("0", "2"):
        with monkeypatch.context() as patch:
            patch.setattr(extraction, "encode_images", wait)
            process = fork(*arguments, "--workers", workers, before=os.setsid)
        assert computing.wait(60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers as well
        assert end(process) == (130, "", "")
        assert {path.name for path in place.iterdir()} == {"encoder", "segmenter", "images"}
        computing.clear()
    assert extraction.encode_images is encode
    assert eupe(*arguments).code == 0
    assert len(read_features("out.parquet").paths) == 3


# ---- streams and folders ----


def test_working_directory_that_was_deleted_is_named(place: Path) -> None:
    sentence = "eupe: The working directory no longer exists: change to another one.\n"
    for arguments in ("list", f"features {place}/images --output {place}/out.parquet", "convert encoder out"):
        assert run(f'mkdir gone; cd gone; rmdir ../gone; "$@" {arguments}') == (2, "", sentence)


@pytest.mark.slow
def test_closed_streams_and_pipes_are_no_fault(place: Path) -> None:
    for arguments in ("list", "info encoder", "predict segmenter images --json", "features --help"):
        assert run(f'( "$@" {arguments}; echo $? >code ) | head -0') == (0, "", "")
        assert Path("code").read_text() == "141\n", arguments
    assert run('"$@" convert encoder converted 0<&- 1>&- 2>&-') == (0, "", "")
    EupeModel.from_pretrained("converted")
    assert run('"$@" features images --model encoder --output out.parquet 0<&- 1>&- 2>&-') == (0, "", "")
    assert len(read_features("out.parquet").paths) == 3
    assert run('"$@" info nothing 2>&-') == (2, "", "")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(umask: int, place: Path) -> None:
    for arguments in (
        ("features", "images", "--model", "encoder", "--output", "written/out.parquet"),
        ("predict", "segmenter", "images", "--output", "written/predictions"),
        ("visualize", "images", "--model", "encoder", "--size", "32", "--output", "written/pictures"),
        ("convert", "encoder", "written/raw.safetensors", "--to", "raw"),
        ("convert", "encoder", "written/converted"),
    ):
        assert eupe(*arguments, before=lambda: os.umask(umask)).code == 0
    for path in Path("written").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


# ---- paths and locales ----


def test_paths_that_are_not_utf_8_are_used_or_refused_in_a_sentence(place: Path) -> None:
    for name in ("encoder", "segmenter", "images"):
        (place / name).rename(place / f"{ODD}-{name}")
    encoder, segmenter, images = (f"{ODD}-{name}" for name in ("encoder", "segmenter", "images"))
    before = {path.name for path in place.iterdir()}
    for arguments in (
        ("convert", encoder, "converted"),
        ("info", encoder),
        ("verify", encoder, "--against", encoder),
        ("features", images, "--model", encoder, "--output", "out.parquet"),
        ("predict", segmenter, images),
        ("visualize", images, "--model", encoder),
    ):
        code, out, err = eupe(*arguments)
        assert (code, out) == (2, "") and err.startswith("eupe: odd\\xff-") and err.endswith(f" {NOT_UTF_8}\n")
    for name in ("encoder", "segmenter"):
        (place / f"{ODD}-{name}").rename(place / name)
    before = {path.name for path in place.iterdir()}
    for output in (
        ["converted"],
        ["raw.pt", "--to", "raw"],
        ["raw.safetensors", "--to", "raw"],
        ["d", "--to", "dinov3"],
    ):
        assert eupe("convert", "encoder", f"{ODD}-{output[0]}", *output[1:]) == (
            2, "", f"eupe: odd\\xff-{output[0]} {NOT_UTF_8}\n",
        )  # fmt: skip
    assert {path.name for path in place.iterdir()} == before
    # images, pictures and features may have any name
    assert eupe("predict", "segmenter", images, "--output", f"{ODD}-out").out.splitlines() == [
        f"{ODD}-out/{i}.png" for i in range(3)
    ]
    assert eupe("features", images, "--model", "encoder", "--output", f"{ODD}.parquet").code == 0
    assert read_features(f"{ODD}.parquet").paths == [f"{images}/{i}.png" for i in range(3)]
    assert "images: 3" in eupe("info", f"{ODD}.parquet").out


@pytest.mark.slow
def test_ascii_locale_takes_long_and_foreign_names(place: Path) -> None:
    name = "ä" * 90 + "文" * 20
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (place / "images").rename(place / name)
    assert run(f'"$@" features {name} --model encoder --output {name}.parquet', **locale)[::2] == (0, "")
    assert read_features(f"{name}.parquet").paths == [f"{name}/{i}.png" for i in range(3)]
    code, out, err = run(f'"$@" search {name}/1.png --index {name}.parquet', **locale)
    assert (code, err) == (0, "") and f"1.0000  {name}/1.png" in out.splitlines()
    # a model cannot be loaded from there, so no features name it either
    (place / "encoder").rename(place / "modèle")
    code, out, err = run(f'"$@" features {name} --model modèle --output new.parquet', **locale)
    assert (code, out, err) == (2, "", f"eupe: mod\\xc3\\xa8le {NOT_UTF_8}\n")
    assert not list(place.glob("*new*"))


# ---- what runs out ----


@pytest.mark.parametrize("handles", [16, 20, 26, 32, 60])
def test_too_few_file_handles_for_the_workers_are_one_sentence(handles: int, place: Path) -> None:
    def limit() -> None:
        ours = {0, 1, 2, sys.stdout.fileno(), sys.stderr.fileno()}
        for handle in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - ours:
            with suppress(OSError):  # the one that listed them
                os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))

    ended = eupe("features", "images", "--model", "encoder", "--output", "out.parquet", "--workers", "4", before=limit)
    if handles == 60:
        assert ended.code == 0 and len(read_features("out.parquet").paths) == 3
        return
    assert ended[:2] == (2, "") and ended.err == (
        "eupe: out.parquet is not finished: 4 workers need more open files than this process may have: raise the "
        "limit (ulimit -n), or use fewer workers. Solve that, then repeat the run to continue.\n"
    )
    assert {path.name for path in place.iterdir()} == {"encoder", "segmenter", "images"}


@pytest.mark.parametrize(
    ("arguments", "writer", "error", "needed"),
    [
        ("convert encoder out", "transformers.modeling_utils.safe_save_file", SafetensorError(_SYSTEM), "502 kB"),
        ("convert encoder out", "shutil.copyfile", _FULL, "502 kB"),
        ("convert encoder out --to dinov3", "eupe_hf.conversion.checkpoints.save_file", _FULL, "202 kB"),
        ("convert encoder out.pt --to raw", "torch.save", RuntimeError("inline_container.cc: position"), "203 kB"),
        ("convert encoder out.safetensors --to raw", "pathlib.Path.touch", _FULL, "203 kB"),
        ("features images --model encoder --output out.parquet", "pyarrow.parquet.ParquetWriter", _FULL, "1 kB"),
        ("predict segmenter images --output out", "pathlib.Path.write_bytes", _FULL, r"\d+ kB"),
        ("visualize images --model encoder --size 64 --output out", "pathlib.Path.write_bytes", _FULL, r"\d+ kB"),
    ],
)
def test_full_disk_is_named_with_both_numbers_and_nothing_is_left(
    arguments: str, writer: str, error: Exception, needed: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    def fill() -> None:
        usage = shutil.disk_usage("/")._replace(free=900)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr(writer, fail)

    code, _, err = eupe(*arguments.split(), before=fill)
    disk = next(path for path in place.parents if path.is_mount())
    assert code == 2 and err.count("\n") == 1
    assert re.search(rf"The disk at {disk} is full: \S+ needs {needed} in {place}\S*, and 1 kB are free\. ", err)
    assert [path for path in place.rglob("*") if "out" in path.name and path.is_file()] == []
    assert list(place.glob(".*")) == []
