# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What becomes of an output that was there: bad input, edits by hand, kills, a full disk, several processes."""

import json
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from conftest import assert_same_bits, random_state, tiny_config

from eupe_hf import EupeConfig, EupeForSegmentation, EupeModel, convert_checkpoint, variant_config
from eupe_hf.conversion import convert_to_layout
from eupe_hf.conversion.checkpoints import Checkpoint, load_checkpoint, save_model_folder
from eupe_hf.conversion.tensor_files import read_state_dict


CONFIG = tiny_config("vit")
FORK = get_context("fork")
forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(path: Path, seed: int = 0, config: EupeConfig = CONFIG) -> Path:
    """A tiny encoder in this package's layout."""
    return save_model_folder(Checkpoint(random_state(config, seed=seed), config, "eupe", None, {}), path)


def weights(path: Path) -> torch.Tensor:
    return load_checkpoint(path, config=CONFIG).state["norm.weight"]


LAYOUTS: dict[str, Callable[[Path, Path], object]] = {
    "ours": convert_checkpoint,
    "raw.pt": lambda checkpoint, output: convert_to_layout(checkpoint, output),
    "raw.safetensors": lambda checkpoint, output: convert_to_layout(checkpoint, output),
    "dinov3": lambda checkpoint, output: convert_to_layout(checkpoint, output, layout="dinov3"),
}
each_layout = pytest.mark.parametrize(("name", "convert"), LAYOUTS.items(), ids=LAYOUTS)


# ---- edits by hand ----

EDITS = {"README.md": "# My model\n", "preprocessor_config.json": '{"size": {"height": 512, "width": 512}}'}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("append", [True, False])
def test_file_that_was_changed_by_hand_is_not_replaced(name: str, append: bool, tmp_path: Path) -> None:
    output = convert_checkpoint(source(tmp_path / "source"), tmp_path / "ours").output
    text = (output / name).read_text()
    (output / name).write_text(text + "\n" if append else EDITS[name])
    before = contents(output)
    with pytest.raises(FileExistsError, match=f"{name} was changed after it was written, and would be lost: move it"):
        convert_checkpoint(tmp_path / "source", output)
    assert contents(output) == before
    (output / name).unlink()
    convert_checkpoint(tmp_path / "source", output)
    assert (output / name).read_text() == text


def test_card_in_a_folder_of_the_dinov3_layout_is_somebodys(tmp_path: Path) -> None:
    output = convert_to_layout(source(tmp_path / "source"), tmp_path / "dinov3", layout="dinov3").output
    convert_to_layout(tmp_path / "source", output, layout="dinov3")
    (output / "README.md").write_text("# Mine\n")
    with pytest.raises(FileExistsError, match=r"README\.md was changed"):
        convert_to_layout(tmp_path / "source", output, layout="dinov3")


def test_any_conversion_as_it_was_written_is_replaced(tmp_path: Path) -> None:
    raw = {name: tmp_path / f"{name}.pt" for name in ("eupe-t", "eupe-convnext-t")}
    for name, path in raw.items():
        torch.save(random_state(variant_config(name), "raw"), path)
    torch.manual_seed(0)
    EupeForSegmentation(tiny_config("vit", num_labels=3)).save_pretrained(tmp_path / "segmenter")
    convert_to_layout(tmp_path / "segmenter", tmp_path / "encoder.pt", head=tmp_path / "head.pt")
    small = source(tmp_path / "source", config=tiny_config("vit", image_size=384))
    output = tmp_path / "ours"
    for _ in range(2):
        for name, path in raw.items():
            assert convert_checkpoint(path, output).values()["model"] == name
        convert_checkpoint(small, output, head=tmp_path / "head.pt", task="segmentation", layers=[1])
        assert json.loads((output / "config.json").read_text())["architectures"] == ["EupeForSegmentation"]
        convert_checkpoint(small, output)
        convert_to_layout(small, output, layout="dinov3")


# ---- bad input ----

BAD: dict[str, Callable[[dict[str, torch.Tensor]], dict]] = {
    "float8": lambda state: {key: tensor.to(torch.float8_e5m2) for key, tensor in state.items()},
    "one float8": lambda state: {**state, "norm.weight": state["norm.weight"].to(torch.float8_e4m3fn)},
    "integers": lambda state: {**state, "norm.weight": state["norm.weight"].int()},
    "not finite": lambda state: {**state, "norm.weight": state["norm.weight"] * float("nan")},
    "a key too few": lambda state: {key: tensor for key, tensor in state.items() if key != "norm.weight"},
    "misshapen": lambda state: {**state, "norm.weight": torch.ones(7)},
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
def test_old_output_stays_whatever_the_input_is(damage: Callable, tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in LAYOUTS}
    for name, output in outputs.items():
        LAYOUTS[name](source(tmp_path / "source"), output)
    before = contents(tmp_path)
    bad = tmp_path / "source" / "bad.pt"
    torch.save(damage(random_state(CONFIG, seed=1)), bad)
    for name, output in outputs.items():
        with pytest.raises(ValueError):
            LAYOUTS[name](bad, output)
    bad.unlink()
    assert contents(tmp_path) == before


def test_old_output_stays_if_the_new_one_would_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = convert_checkpoint(source(tmp_path / "source"), tmp_path / "ours").output
    before = contents(tmp_path)
    save = EupeModel.save_pretrained

    def save_badly(right: str, wrong: str) -> Callable[[EupeModel, Path], None]:
        def save_changed(model: EupeModel, folder: Path) -> None:
            save(model, folder)
            file = Path(folder, "config.json")
            file.write_text(file.read_text().replace(right, wrong))

        return save_changed

    for right, wrong, message in (
        ('"num_hidden_layers": 2', '"num_hidden_layers": 5', "num_hidden_layers is 5, and the weights have 2"),
        ('"rope_theta": 100.0', '"rope_theta": 50.0', r"would not keep the setting 'rope_theta' of .*source"),
    ):
        monkeypatch.setattr(EupeModel, "save_pretrained", save_badly(right, wrong))
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / "source", output)
    assert contents(tmp_path) == before


# ---- a full disk ----


@forks
@each_layout
@pytest.mark.parametrize("room", [0, 20_000])
def test_full_disk_is_one_error_and_leaves_the_old_output(
    room: int, name: str, convert: Callable, tmp_path: Path
) -> None:
    output = tmp_path / name
    convert(source(tmp_path / "source"), output)
    before = contents(tmp_path)
    told = FORK.SimpleQueue()

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # as on a disk that gets full: writing fails
        try:
            convert(tmp_path / "source", output)
        except OSError as error:
            told.put(str(error))

    process = FORK.Process(target=fill)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert f"{name} could not be written" in (message := told.get()) and "bytes are free on its disk" in message
    assert contents(tmp_path) == before


# ---- kills, and several processes ----


def in_processes(count: int, target: Callable[[int], object]) -> list[int | None]:
    """Run in so many processes at once. Returns their exit codes."""
    processes = [FORK.Process(target=target, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@forks
@each_layout
def test_killed_conversion_is_made_whole_by_the_next(name: str, convert: Callable, tmp_path: Path) -> None:
    old, new = source(tmp_path / "old"), source(tmp_path / "new", seed=1)
    output, generator = tmp_path / name, random.Random(0)
    start = time.monotonic()
    assert in_processes(1, lambda _: convert(old, output)) == [0]
    seconds = time.monotonic() - start
    seen = set()
    for delay in (0, *(generator.uniform(0, 1.1 * seconds) for _ in range(7))):
        process = FORK.Process(target=convert, args=(new, output))
        process.start()
        process.join(delay)
        process.kill()
        process.join(60)
        seen.add(process.exitcode)
        if output.exists():  # as a whole, the old or the new
            assert any(torch.equal(weights(output), weights(checkpoint)) for checkpoint in (old, new))
        assert in_processes(1, lambda _: convert(old, output)) == [0]
        assert torch.equal(weights(output), weights(old))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"old", "new", name})
    assert -signal.SIGKILL in seen


@forks
@each_layout
@pytest.mark.parametrize("processes", [2, 4])
def test_conversions_at_once_leave_one_whole_output(
    name: str, convert: Callable, processes: int, tmp_path: Path
) -> None:
    checkpoints = [source(tmp_path / str(number), seed=number) for number in range(processes)]
    output = tmp_path / name

    def convert_often(number: int) -> None:
        torch.set_num_threads(1)
        for _ in range(3):
            convert(checkpoints[number], output)

    assert in_processes(processes, convert_often) == [0] * processes
    assert any(torch.equal(weights(output), weights(checkpoint)) for checkpoint in checkpoints)
    if name == "ours":
        assert_same_bits(EupeModel.from_pretrained(output).state_dict(), read_state_dict(output))
    assert {path.name for path in tmp_path.iterdir()} == {*map(str, range(processes)), name}
