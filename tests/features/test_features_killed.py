# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs of `save_features` that end anywhere: killed, twice at once, on a full disk. The next one makes the file whole.

Runs to be killed are forks of this process: they are spared the imports, and SIGKILL leaves them no time to clean up.
"""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from PIL import Image
from pyarrow.parquet import ParquetWriter
from transformers.utils import logging

from eupe_hf import EupeImageProcessorPil, EupeModel
from eupe_hf.features import FeatureSummary, find_images, read_features, save_features
from eupe_hf.features import extraction as features


FORK = multiprocessing.get_context("fork")
Save = Callable[..., FeatureSummary]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images, two of them damaged."""
    (tmp_path / "images").mkdir()
    for i in range(11):
        Image.new("RGB", (20, 20), (i, 2 * i, 3 * i)).save(tmp_path / "images" / f"{i:02d}.png")
    for i in (3, 10):
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(b"no picture")
    return tmp_path / "images"


@pytest.fixture
def save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """`save_features` of the folder with a tiny model, in parts of four images."""
    logging.disable_progress_bar()  # tqdm's lock is shared with forks, and stays locked where one is killed
    monkeypatch.setattr(features, "_PART_BATCHES", 2)
    monkeypatch.setattr(features, "_LOCK_SECONDS", 0.5)
    torch.manual_seed(0)
    model = EupeModel(tiny_config("vit")).eval()
    processor = EupeImageProcessorPil(size={"height": 32, "width": 32})
    paths = find_images([folder])

    def call(output: Path, workers: int = 0, **options: Any) -> FeatureSummary:
        return save_features(model, processor, paths, output, batch_size=2, num_workers=workers, **options)

    return call


def fork(call: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start a call in a process group of its own."""

    def target() -> None:
        os.setsid()
        torch.set_num_threads(1)  # the threads of this process are not in the fork
        call(*arguments)

    process = FORK.Process(target=target)
    process.start()
    return process


def assert_whole(found: Path, expected: Path) -> None:
    """The same images in the same order, every bit of their features, and nothing left lying around."""
    file, whole = read_features(found), read_features(expected)
    assert file.paths == whole.paths and len(set(file.paths)) == 9
    assert torch.equal(file.features, whole.features) and file.model == whole.model
    assert {path.name for path in found.parent.iterdir()} == {"images", found.name, expected.name}


def killed_before(event: int, save: Save, output: Path) -> bool:
    """Run until so many changes of files were begun, and kill before the next; whether it came to that.

    A file that is being written changes three times: when it is opened, before and between its rows.
    """
    changes = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
    ours = (output.name, ".parquet", "joined")
    write = ParquetWriter.write_table

    def count() -> None:
        nonlocal event
        event -= 1
        if event < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_changes(name: str, arguments: tuple) -> None:
        if name in changes and any(word in str(arguments[:2]) for word in ours):
            count()

    def write_in_halves(self: ParquetWriter, table: Any) -> None:
        count()  # the file has begun
        write(self, table.slice(0, 1))
        count()
        write(self, table.slice(1))

    def run() -> None:
        sys.addaudithook(count_changes)
        ParquetWriter.write_table = write_in_halves
        save(output)

    process = fork(run)
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_run_killed_before_any_change_of_files_is_made_whole(save: Save, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    assert save(whole).count == 9
    event, generator, seen = 0, random.Random(0), set()
    while killed_before(event, save, cut):
        seen.add((cut.exists(), (tmp_path / f".{cut.name}.parts").exists()))
        if cut.exists():  # killed while it tidied up, and the file was thrown away: what is left must not mislead
            cut.unlink(missing_ok=event % 2 == 0)
        killed_before(generator.randrange(30), save, cut)
        summary = save(cut)
        assert summary.count == 9 and len(summary.skipped) == 2
        assert_whole(cut, whole)
        cut.unlink()
        event += 1
    assert event >= 30  # 40 when written
    assert seen == {(False, False), (False, True), (True, True), (True, False)}


def test_run_killed_at_random_moments_is_made_whole(save: Save, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    start = time.monotonic()
    process = fork(save, whole, 1)
    process.join(60)
    seconds, generator = time.monotonic() - start, random.Random(0)
    for attempt in range(8):
        process = fork(save, cut, 1)
        process.join(generator.uniform(0, 1.2 * seconds))
        if process.is_alive():
            # now with its worker, now alone: a worker that outlives it must not hold the lock for long
            (os.killpg if attempt % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.join(60)
    assert save(cut).count == 9
    assert_whole(cut, whole)


def test_overwriting_run_that_is_killed_leaves_nothing_that_misleads(save: Save, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    save(whole)
    for event in range(0, 30, 2):
        killed_before(20, save, cut)  # leaves parts

        def overwrite(output: Path) -> FeatureSummary:
            return save(output, overwrite=True)

        killed_before(event, overwrite, cut)
        assert save(cut).count == 9
        assert_whole(cut, whole)
        cut.unlink()


def test_damaged_part_is_computed_again(save: Save, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    save(whole)
    event, parts = 20, tmp_path / ".cut.parquet.parts"
    while len(list(parts.glob("*.parquet"))) < 2:
        assert killed_before(event, save, cut)
        event += 1
    (parts / "000000.parquet").write_bytes((parts / "000000.parquet").read_bytes()[:-5])
    summary = save(cut)
    assert (summary.count, summary.resumed) == (9, 0)
    assert_whole(cut, whole)


def test_second_run_on_one_output_is_refused_and_does_no_harm(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    save(whole)
    encode, computing, resume = features.encode_images, FORK.Event(), FORK.Event()

    def waiting(*arguments: Any) -> torch.Tensor:
        computing.set()
        assert resume.wait(60)
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "encode_images", waiting)
        process = fork(save, cut)
    assert computing.wait(60)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"Another run is writing .*cut\.parquet: wait until it ends"):
            save(cut, overwrite=overwrite)
    resume.set()
    process.join(60)
    assert process.exitcode == 0
    assert_whole(cut, whole)


@pytest.mark.parametrize("room", [100, 3_000], ids=["for no part", "for parts"])
def test_full_disk_is_told_and_the_run_goes_on(save: Save, tmp_path: Path, room: int) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    save(whole)
    told, answer = FORK.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # writing more fails, as on a full disk
        try:
            save(cut)
        except OSError as error:
            answer.send(str(error))

    fork(run).join(60)
    assert told.poll()
    sentence = told.recv()
    assert f"{cut} is not finished: " in sentence and "File too large" in sentence
    assert sentence.endswith("Solve that, then repeat the run to continue.")
    assert not cut.exists()
    summary = save(cut)
    assert summary.count == 9 and summary.resumed == (0 if room == 100 else 11)
    assert_whole(cut, whole)


def test_output_that_cannot_be_written_is_told(save: Save, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out\.parquet is not finished: .*file"):
        save(tmp_path / "file" / "out.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match=r"folder\.parquet is a folder: give a file name"):
        save(tmp_path / "folder.parquet")
    (tmp_path / "foreign.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"foreign\.parquet cannot be read as a \.parquet file"):
        save(tmp_path / "foreign.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "file", "folder.parquet", "foreign.parquet"}
