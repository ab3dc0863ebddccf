# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs that are killed anywhere, two at once, on a full disk, and a cache in which files were changed afterwards.

The next run makes the same output as one that nothing disturbed, and leaves nothing behind.
"""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from campaign import UnmadeError, WrongError, building, scratch, snapshot, stderr_of
from checkpoint_cases import model_of
from checkpoint_changes import config_of, shrink, truth
from conftest import ROOT
from hub_server import TOKEN, HubServer, use_hub
from hypothesis import strategies as st
from PIL import Image

from eupe_hf import EupeImageProcessorPil, EupeModel
from eupe_hf.conversion import convert_checkpoint, convert_to_layout
from eupe_hf.conversion.layouts import from_eupe
from eupe_hf.features import extraction
from eupe_hf.features.extraction import save_features
from eupe_hf.hub.fetch import fetch


_FORK = multiprocessing.get_context("fork")
_WAIT = 25.0  # seconds for one run
_REPO, _FILE, _NAME = "facebook/EUPE-ViT-T", "EUPE-ViT-T.pt", "eupe-t"
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
_SUFFIXES = (".json", ".safetensors", ".py", ".md")
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """A run that something disturbs.

    Args:
        what: "kill", "pair", "full", "small disk" or "cache".
        job: What runs, one of `JOBS`; for "cache" the file that was changed.
        number: Of changes of files before the kill, or bytes of room; for "cache" what is done to the file.
        share: For "kill": if below 1, kill after this share of the time of a whole run instead.
        old: Whether an older output is there.
        then: For "kill": the next run is "whole", or itself "killed" or on a "full" disk.
    """

    what: str
    job: str = "convert"
    number: int = 0
    share: float = 1.0
    old: bool = True
    then: str = "whole"


def prepare() -> None:
    """Sources, a Hub on this machine, and what undisturbed runs make."""
    shrink()
    extraction._PART_BATCHES, extraction._LOCK_SECONDS = 2, 3.0
    folder = Path(tempfile.mkdtemp(prefix="eupe-fuzz-sources-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for seed in (1, 2):
        state = {key: t.clone() for key, t in from_eupe(truth("vit", seed), config_of("vit"), "raw").items()}
        torch.save(state, folder / f"source{seed}.pt")
    model_of("vit", 1).save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for i in range(9):
        Image.new("RGB", (20, 20), (i, 2 * i, 3 * i)).save(folder / "images" / f"{i}.png")
    (folder / "images" / "3.png").write_bytes(b"no picture")
    server = HubServer().__enter__()
    server.add_repo(_REPO, {_FILE: (folder / "source1.pt").read_bytes()})
    sys.path.insert(0, str(ROOT / "conversion"))
    _made.update(folder=folder, server=server, script=importlib.import_module("publish"))
    for job in JOBS:
        with scratch() as place:
            start = time.monotonic()
            JOBS[job](place, 1)
            _made[job] = _content(job, place), time.monotonic() - start


def _convert(place: Path, seed: int) -> None:
    convert_checkpoint(_made["folder"] / f"source{seed}.pt", place / "out")


def _raw(place: Path, seed: int) -> None:
    convert_to_layout(_made["folder"] / f"source{seed}.pt", place / "out.safetensors", layout="raw")


def _dinov3(place: Path, seed: int) -> None:
    convert_to_layout(_made["folder"] / f"source{seed}.pt", place / "out", layout="dinov3")


def _features(place: Path, seed: int) -> None:
    processor = EupeImageProcessorPil(size={"height": 32, "width": 32})
    paths = [str(_made["folder"] / "images" / f"{i}.png") for i in range(9)]
    model = EupeModel.from_pretrained(_made["folder"] / "model").eval()
    save_features(model, processor, paths, place / "out.parquet", 2, 0, overwrite=seed > 1)


def _pull(place: Path, seed: int) -> None:
    with use_hub(_made["server"], place):
        fetch(_NAME, force_download=seed > 1)


def _publish(place: Path, seed: int) -> None:
    (place / "tmp").mkdir(exist_ok=True)
    words = ["--checkpoint", str(_made["folder"] / f"source{seed}.pt"), "--repo", _repo_of(place), "--push"]
    with (
        mock.patch.object(tempfile, "tempdir", str(place / "tmp")),
        use_hub(_made["server"], place, token=TOKEN),
        Path(os.devnull).open("w", encoding="utf-8") as nothing,
        contextlib.redirect_stdout(nothing),
    ):
        code, told = stderr_of(lambda: _made["script"].main(words))
    if code:
        raise (ValueError if code == 2 and "Traceback" not in told else RuntimeError)(told)


def _repo_of(place: Path) -> str:
    return f"me/{place.name}"


JOBS: dict[str, Callable[[Path, int], None]] = {
    "convert": _convert, "raw": _raw, "dinov3": _dinov3, "features": _features, "pull": _pull, "publish": _publish,
}  # fmt: skip
_LOCAL = sorted(JOBS.keys() - {"publish"})  # the others write what they make on this disk


def _content(job: str, place: Path) -> dict[str, bytes]:
    """What a run has made: all files of the place; of the Hugging Face home the paths below the model's store."""
    if job == "publish":  # the repository, and what is left of the work
        own = _repo_of(place).encode()
        there = _made["server"].files(_repo_of(place))
        return snapshot(place / "tmp") | {name: content.replace(own, b"REPO") for name, content in there.items()}
    found = snapshot(place)
    if job == "pull":  # what the client keeps beside is its own, but for downloads that it gave up; digests have times
        skip = ("modules", ".locks", "xet", "logs", "CACHEDIR.TAG", "/blobs/tmp_")
        found = {
            name: content if "eupe-hf" in name and "digests" not in name and Path(name).suffix in _SUFFIXES else b""
            for name, content in found.items()
            if not any(part in name for part in skip) and not name.endswith((".lock", "/", ".tmp"))
        }
    return found


# ---- processes ----


def _inside(job: str, place: Path, seed: int, limits: dict[str, Any], told: Any) -> None:
    torch.set_num_threads(1)
    left = limits.get("events", -1)

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if left >= 0 and event in _EVENTS and str(place) in str(arguments[:2]):
            if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if left >= 0:
        sys.addaudithook(count)
    if "seconds" in limits:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, wherever it is
        signal.setitimer(signal.ITIMER_REAL, max(limits["seconds"], 0.001))
    if "room" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["room"],) * 2)
    try:
        JOBS[job](place, seed)
        told.send(("done", ""))
    except (OSError, ValueError) as error:
        told.send(("refused", f"{type(error).__name__}: {error}"))
    except BaseException as error:  # for the process that judges
        told.send(("traceback", f"{type(error).__name__}: {error}"))


def _start(job: str, place: Path, seed: int = 1, **limits: Any) -> tuple[Any, Any]:
    hears, told = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_inside, args=(job, place, seed, limits, told))
    process.start()
    told.close()
    return process, hears


def _end(process: Any, hears: Any) -> tuple[str, str]:
    """ "done", "refused", "traceback", "killed" or "hang", and what was told."""
    process.join(_WAIT)
    if process.is_alive():
        process.kill()
        process.join()
        return "hang", f"no end after {_WAIT:g} s"
    try:
        return hears.recv() if hears.poll() else ("killed", "")
    except EOFError:
        return "killed", ""
    finally:
        hears.close()


def _run(job: str, place: Path, seed: int = 1, **limits: Any) -> tuple[str, str]:
    how, told = _end(*_start(job, place, seed, **limits))
    if how in ("traceback", "hang"):
        raise RuntimeError(f"{how} of {job}: {told}")
    return how, told


# ---- judging ----


def _is_new(job: str, place: Path) -> None:
    """The output is that of an undisturbed run, and nothing else is there."""
    expected, found = _made[job][0], _content(job, place)
    if found.keys() != expected.keys():
        raise WrongError(f"{job} leaves {sorted(found.keys() ^ expected.keys())[:4]}")
    if changed := [name for name in expected if found[name] != expected[name]]:
        raise WrongError(f"{job}: other bytes in {changed[:3]}")


def _main_files(job: str, place: Path) -> dict[str, bytes]:
    """The output alone."""
    return {name: content for name, content in snapshot(place).items() if name.startswith("out")}


def _check_kill(case: Run, place: Path, names: list[str]) -> None:
    with building():
        if case.old:
            JOBS[case.job](place, 2 if case.job not in ("pull", "features") else 1)
        old = _main_files(case.job, place)
    limits = {"events": case.number} if case.share >= 1 else {"seconds": case.share * _made[case.job][1]}
    seed = 1 if case.job not in ("pull", "features") or not case.old else 3
    _run(case.job, place, seed, **limits)
    if case.then == "killed":
        _run(case.job, place, seed, events=case.number // 2)
    if case.then == "full":
        how, told = _run(case.job, place, seed, room=0)
        now = _main_files(case.job, place)
        wanted = [old, {n: c for n, c in _made[case.job][0].items() if n.startswith("out")}]
        if how == "refused" and case.job in ("convert", "raw", "dinov3") and now not in wanted:
            raise WrongError(f"neither the old output nor the new one is there: {sorted(now)}")
    # a model that is there is used as it is: what a killed download left goes with the next download
    how, told = _run(case.job, place, 3 if case.job == "pull" else 1)
    if how != "done":
        raise RuntimeError(f"the next run is {how}: {told}")
    _is_new(case.job, place)


def _check_pair(case: Run, place: Path, names: list[str]) -> None:
    with building():
        if case.old and case.job not in ("pull", "features"):
            JOBS[case.job](place, 2)
    runs = []
    for _ in range(2 + case.number % 3):
        runs.append(_start(case.job, place))
        time.sleep(0.002 * (case.number % 7))
    ends = [_end(*run) for run in runs]
    if wrong := [end for end in ends if end[0] not in ("done", "refused")]:
        raise RuntimeError(f"{wrong[0]}")
    if not any(how == "done" for how, _ in ends):
        raise WrongError(f"none of {len(ends)} runs at once made it: {ends[0][1]}")
    _is_new(case.job, place)


def _check_full(case: Run, place: Path, names: list[str]) -> None:
    """Files that cannot grow beyond so many bytes."""
    with building():
        if case.old and case.job not in ("pull", "features"):
            JOBS[case.job](place, 2)
        old = _main_files(case.job, place)
    how, told = _run(case.job, place, room=case.number)
    if how == "refused" and case.job in ("convert", "raw", "dinov3") and _main_files(case.job, place) != old:
        raise WrongError("the old output changed")
    again, why = _run(case.job, place, 3 if case.job == "pull" else 1)
    if again != "done":
        raise RuntimeError(f"the next run is {again}: {why}")
    _is_new(case.job, place)
    if how == "refused":
        names += ["out", "eupe-t", str(place)]
        raise ValueError(told.partition(": ")[2])


def _check_small_disk(case: Run, place: Path, names: list[str]) -> None:
    """A file system of so many bytes, which needs root."""
    with building():
        disk = place / "disk"
        disk.mkdir()
        kib = 16 + case.number // 1024
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
        if os.getuid() or subprocess.run(command, capture_output=True).returncode:
            raise UnmadeError("only root can mount a small file system, and not in every container")
    try:
        how, told = _run(case.job, disk)
        left = _content(case.job, disk)
        if how == "done":
            _is_new(case.job, disk)
        elif case.job != "features" and case.job != "pull" and left:
            raise WrongError(f"refused, and left {sorted(left)[:3]}")
    finally:
        with building():
            subprocess.run(["umount", "-l", str(disk)], capture_output=True)
    if how == "refused":
        names += ["out", "eupe-t", str(disk)]
        raise ValueError(told.partition(": ")[2])


_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "cut": lambda content: content[: len(content) // 2], "empty": lambda content: b"",
    "flip": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if len(content) > 9 else b"x",
    "braces": lambda content: b"{}", "elsewhere": lambda content: os.fsencode(_made["folder"] / "model"),
    "here": lambda content: b".", "text": lambda content: b"no such folder", "noise": lambda content: b"\xff\0\xfe",
}  # fmt: skip
_CACHED = ("model.safetensors", "config.json", "preprocessor_config.json", "refs", "blob", "all")


def _check_cache(case: Run, place: Path, names: list[str]) -> None:
    """A file of the cache changes after the download: then the true weights come, or a sentence."""
    with building():
        _pull(place, 1)
        stores = [folder for folder in place.rglob("eupe-hf") if folder.is_dir()]
        files = [file for file in stores[0].rglob("*") if file.is_file()]
        chosen = [file for file in files if file.name == case.job or case.job in str(file.parent.name)]
        if case.job == "blob":
            chosen = [file for file in place.rglob("blobs/*") if file.is_file()]
        elif case.job == "all":
            chosen = [file for file in files if "refs" not in str(file)]
        how = sorted(_CHANGES)[case.number % len(_CHANGES)]
        for file in chosen:
            if case.then == "removed":
                file.unlink()
            else:
                file.write_bytes(_CHANGES[how](file.read_bytes()))
        here = place / "here"
        here.mkdir()
        for file in (_made["folder"] / "model").iterdir():
            shutil.copy(file, here)  # another model lies in the working directory
        with contextlib.suppress(OSError):
            weights = here / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80?")
        before = Path.cwd()
    names += [_NAME, _FILE, "eupe-hf", str(place)]
    os.chdir(here)
    try:
        with use_hub(_made["server"], place):
            if not case.old:
                fetch(_NAME, force_download=True)
            model = EupeModel.from_pretrained(_NAME)
            folder = fetch(_NAME)
    finally:
        os.chdir(before)
    if not folder.resolve().is_relative_to(place.resolve()):
        raise WrongError(f"it comes from {folder}")
    for key, tensor in model.state_dict().items():
        if not torch.equal(tensor, truth("vit", 1)[key]):
            raise WrongError(f"{key} is not what was published")
    json.loads((folder / "config.json").read_text())


CHECKS: dict[str, Callable[[Run, Path, list[str]], None]] = {
    "kill": _check_kill, "pair": _check_pair, "full": _check_full, "small disk": _check_small_disk,
    "cache": _check_cache,
}  # fmt: skip


def check(case: Run, names: list[str]) -> None:
    """Disturb the run, and look at what the next one makes."""
    with scratch() as place:
        CHECKS[case.what](case, place, names)


_JOB = st.sampled_from(_LOCAL)
CASES: st.SearchStrategy[Run] = st.one_of(
    st.builds(
        Run, what=st.just("kill"), job=st.sampled_from(sorted(JOBS)), number=st.integers(0, 70),
        share=st.just(1.0) | st.floats(0, 1),
        old=st.booleans(), then=st.sampled_from(["whole", "whole", "killed", "full"]),
    ),
    st.builds(Run, what=st.just("pair"), job=_JOB, number=st.integers(0, 20), old=st.booleans()),
    st.builds(Run, what=st.just("full"), job=_JOB, number=st.integers(0, 200_000), old=st.booleans()),
    st.builds(Run, what=st.just("small disk"), job=_JOB, number=st.integers(0, 600_000)),
)  # fmt: skip
CACHES: st.SearchStrategy[Run] = st.builds(
    Run, what=st.just("cache"), job=st.sampled_from(_CACHED), number=st.integers(0, len(_CHANGES) - 1),
    old=st.booleans(), then=st.sampled_from(["changed", "changed", "changed", "removed"]),
)  # fmt: skip
KNOWN = [
    *(Run("kill", job, number) for job in JOBS for number in range(0, 40, 5)),
    *(Run("pair", job, number) for job in _LOCAL for number in (0, 2)),
    *(Run("full", job, number) for job in _LOCAL for number in (0, 3000, 60_000)),
    *(Run("small disk", job, number) for job in _LOCAL for number in (0, 90_000)),
]  # fmt: skip
KNOWN_CACHES = [
    Run("cache", file, number, old=old) for file in _CACHED for number in range(len(_CHANGES)) for old in (True, False)
]
