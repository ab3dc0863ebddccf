# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the cache gives back is what was converted: digests, wrong repositories, full disks, runs that were killed."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
from conftest import tiny_config
from hub_server import HubServer, hub_environment, use_hub
from published import FILE, REPO, SAVED_FILES, assert_weights, checkpoint, converted_folder, files_below
from safetensors import SafetensorError

import eupe_hf
from eupe_hf import CheckpointError, EupeForSegmentation, EupeImageProcessorPil, EupeModel, variant_config
from eupe_hf.conversion.checkpoints import load_checkpoint, save_layout
from eupe_hf.hub.fetch import fetch


fetch_file = sys.modules[fetch.__module__]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in Hub with the raw file of eupe-t, an empty home, and an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo(REPO, {FILE: checkpoint()[0], "README.md": b"---\nlicense: other\n---\n"})
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with eupe-t converted in it, to copy."""
    home = tmp_path_factory.mktemp("converted") / "home"
    with HubServer() as server, use_hub(server, home):
        server.add_repo(REPO, {FILE: checkpoint()[0], "README.md": b"---\nlicense: other\n---\n"})
        fetch("eupe-t")
    return home


@pytest.fixture
def store(server: HubServer, converted: Path, home: Path) -> Path:
    """Where conversions of eupe-t are kept, with one in it."""
    shutil.copytree(converted, home, symlinks=True)
    return home / "eupe-hf" / "eupe-t"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose digests are computed."""
    names: list[str] = []
    sha256 = fetch_file._sha256
    monkeypatch.setattr(fetch_file, "_sha256", lambda path: names.append(path.name) or sha256(path))
    return names


def zero_end(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 400_000)
        opened.truncate(size)


# ---- the digest ----

WEIGHTS = "model.safetensors"
CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "zeroed end": (WEIGHTS, zero_end),
    "cut short": (WEIGHTS, lambda file: os.truncate(file, 1_000_000)),
    "empty configuration": ("config.json", lambda file: file.write_text("")),
    "other configuration": (
        "config.json",
        lambda file: file.write_text(file.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-03')),
    ),
    "no processor": ("preprocessor_config.json", Path.unlink),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_conversion_is_made_again(store: Path, server: HubServer, caplog, change: str) -> None:
    name, apply = CHANGES[change]
    folder = store / converted_folder(server)
    apply(folder / name)
    with caplog.at_level(logging.WARNING):
        assert_weights(EupeModel.from_pretrained("eupe-t"))
    assert f"{name} is missing or has changed since {folder} was converted: it is made again." in caplog.text
    assert files_below(folder) == SAVED_FILES
    assert json.loads((folder / "config.json").read_text())["layer_norm_eps"] == 1e-5
    assert {path.name for path in store.iterdir()} == {folder.name, "refs", "digests", ".lock"}
    server.reset_log()
    assert_weights(EupeModel.from_pretrained("eupe-t"))
    assert server.requests == []


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": 5}', '{"sha256": {"config.json": null}}', "[" * 2000])
def test_damaged_record_is_written_again(store: Path, server: HubServer, content: str) -> None:
    record = store / "digests" / f"{converted_folder(server)}.json"
    good = record.read_text()
    record.write_text(content)
    assert_weights(EupeModel.from_pretrained("eupe-t"))
    assert json.loads(record.read_text())["sha256"].keys() == json.loads(good)["sha256"].keys() == SAVED_FILES


def test_change_behind_the_same_time_is_found_by_pull(store: Path, server: HubServer) -> None:
    file = store / converted_folder(server) / WEIGHTS
    before = file.stat()
    zero_end(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_weights(EupeModel.from_pretrained(fetch("eupe-t", verify=True)))


def test_unchanged_conversion_is_not_read_again(store: Path, server: HubServer, hashed: list[str]) -> None:
    folder = fetch("eupe-t")
    assert hashed == []
    for file in folder.iterdir():  # a copy with other times
        os.utime(file, ns=(1, 1))
    assert fetch("eupe-t") == folder
    assert set(hashed) == SAVED_FILES
    hashed.clear()
    assert fetch("eupe-t") == folder
    assert hashed == [] and server.requests == []
    fetch("eupe-t", verify=True)
    assert set(hashed) == SAVED_FILES


def test_cache_may_move(store: Path, home: Path, server: HubServer, tmp_path: Path) -> None:
    home.rename(tmp_path / "moved")
    with use_hub(server, tmp_path / "moved", offline=True):
        assert fetch("eupe-t").is_relative_to(tmp_path / "moved")
        assert_weights(EupeModel.from_pretrained("eupe-t"))


def test_force_makes_it_anew_and_other_revisions_share_it(store: Path, server: HubServer, hashed: list[str]) -> None:
    folder = store / converted_folder(server)
    server.tag(REPO, "v1")
    written = (folder / WEIGHTS).stat().st_mtime_ns
    assert fetch("eupe-t", revision="v1") == folder and (folder / WEIGHTS).stat().st_mtime_ns == written
    zero_end(folder / WEIGHTS)
    assert fetch("eupe-t", force_download=True) == folder
    assert_weights(EupeModel.from_pretrained(folder))
    hashed.clear()
    assert fetch("eupe-t", revision="v1") == folder and hashed == []


@pytest.mark.parametrize("reference", ["", ".", "..", "refs", "/", "../eupe-t", "\0", "HERE", "\udcff"])
def test_reference_leads_nowhere_else(store: Path, server: HubServer, reference: str) -> None:
    EupeModel(tiny_config("vit")).save_pretrained(".")  # what an empty path would load
    reference = reference.replace("HERE", str(Path.cwd()))
    (store / "refs" / "main").write_text(reference, encoding="utf-8", errors="surrogateescape")
    assert fetch("eupe-t") == store / converted_folder(server)
    assert_weights(EupeModel.from_pretrained("eupe-t"))
    with pytest.raises(ValueError, match="Unknown EUPE model ''"):
        fetch("")


def test_conversion_stays_if_the_new_one_fails(store: Path, server: HubServer, monkeypatch) -> None:
    folder = store / converted_folder(server)
    for content in (checkpoint()[0][:1_000_000], checkpoint("eupe-convnext-t")[0]):
        server.commit(REPO, {FILE: content})
        with pytest.raises(CheckpointError):
            fetch("eupe-t", force_download=True)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", _disk_is_full)
        patch.setattr("transformers.modeling_utils.safe_save_file", _disk_is_full)
        server.commit(REPO, {FILE: checkpoint()[0]})
        with pytest.raises(OSError, match=r"The disk at .* is full"):
            fetch("eupe-t", force_download=True)
    assert fetch("eupe-t") == folder
    assert_weights(EupeModel.from_pretrained(folder))


# ---- what the repository holds ----


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_layout(tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "own", ignore_errors=True)
    (tmp_path / FILE).write_bytes(checkpoint()[0])
    return save_layout(load_checkpoint(tmp_path / FILE), tmp_path / "own", "eupe")


def _tiny(folder: Path) -> None:
    shutil.rmtree(folder)
    EupeModel(tiny_config("vit")).save_pretrained(folder)


def _task_model(folder: Path) -> None:
    shutil.rmtree(folder)
    EupeForSegmentation(variant_config("eupe-t", num_labels=3)).save_pretrained(folder)


def _nan(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["norm.weight"][3] = float("nan")
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _fewer_blocks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 6, "out_features": ["stage6"], "out_indices": [6]}
    (folder / "config.json").write_text(json.dumps(config))


WRONG = {
    "tiny": (_tiny, "not eupe-t"),
    "task model": (_task_model, "is a task model: its head.*does not belong to eupe-t"),
    "truncated": (lambda folder: os.truncate(folder / WEIGHTS, 1_000_000), "truncated|cut short"),
    "not finite": (_nan, "'norm.weight' holds 1 values that are NaN or infinite"),
    "fewer blocks": (_fewer_blocks, "."),
    "empty configuration": (lambda folder: (folder / "config.json").write_text(""), "config.json is not valid JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json must hold a JSON object"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").write_text("["), "not valid JSON"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_own_layout_is_refused(server: HubServer, home: Path, tmp_path: Path, wrong: str) -> None:
    change, message = WRONG[wrong]
    change(folder := own_layout(tmp_path))
    server.commit(REPO, files_of(folder))
    with pytest.raises((ValueError, OSError), match=message):
        EupeModel.from_pretrained("eupe-t")
    assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}
    server.commit(REPO, files_of(own_layout(tmp_path)))
    assert_weights(EupeModel.from_pretrained("eupe-t"))


def test_own_layout_keeps_its_processor(server: HubServer, tmp_path: Path) -> None:
    folder = own_layout(tmp_path)
    EupeImageProcessorPil(size={"height": 512, "width": 512}).save_pretrained(folder)
    server.commit(REPO, files_of(folder))
    assert EupeImageProcessorPil.from_pretrained("eupe-t").size.height == 512
    assert_weights(EupeModel.from_pretrained("eupe-t"))


def test_damaged_small_file_is_found_in_the_cache_of_downloads(server: HubServer, home: Path, tmp_path: Path) -> None:
    server.commit(REPO, files_of(own_layout(tmp_path)))
    server.corrupt(REPO, "config.json")
    with pytest.raises(OSError, match=r"config.json was damaged during the download: its git id is \w{40}, the Hub"):
        fetch("eupe-t")
    server.clear_faults()
    assert_weights(EupeModel.from_pretrained("eupe-t"))


# ---- full disks, and folders that can't be written ----


def _disk_is_full(*args: object, **kwargs: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_full_disk_is_named_with_both_numbers(server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage("/")._replace(free=8_400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    disk = next(path for path in home.parents if path.is_mount())
    where = "Make room there, or name another folder: HF_HOME=FOLDER in the environment, or cache_dir=FOLDER."
    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", _disk_is_full)
        with pytest.raises(OSError) as caught:
            fetch("eupe-t")
    assert str(caught.value) == (
        f"The disk at {disk} is full: the conversion of eupe-t needs 22 MB in {home / 'eupe-hf' / 'eupe-t'}, and 8 MB "
        f"are free. {where}"
    )
    assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}
    shutil.rmtree(home)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob")
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(fetch_file, "hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(error))
        fetch("eupe-t")
    assert str(caught.value) == (
        f"The disk at {disk} is full: the download of eupe-t needs 22 MB in {home / 'hub'}, and 8 MB are free. {where}"
    )
    assert_weights(EupeModel.from_pretrained("eupe-t"))


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something at a folder, where that is allowed."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def pull(server: HubServer, home: Path, *options: str) -> subprocess.Popen:
    environment = hub_environment(server, home) | {"PYTHONPATH": str(Path(eupe_hf.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-m", "eupe_hf.cli", "pull", "eupe-t", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "what"), [(30, "conversion"), (10, "download"), (60, None)])
def test_pull_on_a_small_disk(server: HubServer, home: Path, room: int, what: str | None) -> None:
    home.mkdir()
    with mounted(home, "-t", "tmpfs", "-o", f"size={room}m", "tmpfs"):
        process = pull(server, home)
        out, err = process.communicate(timeout=120)
        if what is None:
            assert process.returncode == 0 and Path(out.strip()).is_dir()
            return
        assert (process.returncode, out) == (2, "")
        *licence, message = err.splitlines()
        assert message.startswith(f"eupe: The disk at {home} is full: the {what} of eupe-t needs 22 MB in {home}/")
        assert len(licence) == (what == "conversion")
        assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}


@pytest.mark.parametrize("how", ["a file in its way", "read-only"])
def test_home_that_cannot_be_written_is_named(server: HubServer, home: Path, how: str) -> None:
    if how == "read-only":
        home = Path("/proc/eupe")  # where not even root makes a folder
    else:
        home.write_text("")
    with (
        use_hub(server, home),
        pytest.raises(OSError, match=rf"^{home}/eupe-hf/eupe-t cannot be written \(.*\)\. Make"),
    ):
        fetch("eupe-t")


@pytest.mark.slow
def test_converted_model_loads_from_a_read_only_home(store: Path, home: Path, server: HubServer) -> None:
    with mounted(home, "--bind", "-o", "ro", str(home)):
        with pytest.raises(OSError):
            (home / "new").touch()
        server.reset_log()
        assert_weights(EupeModel.from_pretrained("eupe-t"))
        assert server.requests == []


# ---- runs that were killed ----


def test_remains_of_killed_runs_are_removed(server: HubServer, home: Path) -> None:
    blobs = home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'a' * 64}.12345678.incomplete").write_bytes(b"left")
    (running := blobs / f"{'b' * 64}.12345678.incomplete").write_bytes(b"being downloaded")
    lock = home / "hub" / ".locks" / blobs.parent.name / f"{'b' * 64}.lock"
    lock.parent.mkdir(parents=True)
    for name in (".new.part", ".old.part", "refs/.main.abc.part"):
        (home / "eupe-hf" / "eupe-t" / name / "new").mkdir(parents=True)
    program = f"import time\nfrom huggingface_hub.utils import WeakFileLock\nwith WeakFileLock({str(lock)!r}):\n"
    program += "    print('held', flush=True)\n    time.sleep(60)\n"
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        folder = fetch("eupe-t")
    finally:
        holder.kill()
        holder.wait()
    assert {path.name for path in blobs.glob("*.incomplete")} == {running.name}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "refs", "digests", ".lock"}
    assert {path.name for path in (folder.parent / "refs").iterdir()} == {"main"}


@pytest.mark.slow
def test_killed_pulls_end_as_an_unbroken_one(server: HubServer, home: Path) -> None:
    started = time.perf_counter()
    assert pull(server, home).wait(timeout=120) == 0
    whole, expected = time.perf_counter() - started, files_below(home)
    delays = random.Random(0)
    for number in range(12):
        shutil.rmtree(home)
        process = pull(server, home)
        time.sleep(delays.uniform(0.4, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert pull(server, home, *(["--force"] if number % 2 else [])).wait(timeout=120) == 0
        assert files_below(home) == expected
        with use_hub(server, home):
            assert_weights(EupeModel.from_pretrained("eupe-t"))
