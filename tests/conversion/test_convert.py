# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The conversion calls: their arguments, the proof they return, and what happens when a proof fails."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import assert_same_bits, random_state, tiny_config
from hub_server import HubServer, use_hub
from published import checkpoint
from safetensors.torch import load_file

from eupe_hf import CheckpointError, EupeForSegmentation, EupeModel, conversion, convert_checkpoint, convert_head
from eupe_hf.conversion import Conversion, ConversionError, OptionError, convert_to_layout, verify
from eupe_hf.conversion import convert as convert_module
from eupe_hf.conversion.checkpoints import Checkpoint, load_checkpoint, save_model_folder, save_tensors
from eupe_hf.hub import fetch


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny encoder, as a folder."""
    config = tiny_config("vit")
    return save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "source")


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    """A tiny task model, as a folder."""
    torch.manual_seed(0)
    EupeForSegmentation(tiny_config("vit", num_labels=3)).save_pretrained(tmp_path / "segmenter")
    return tmp_path / "segmenter"


def damage(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these functions of `conversion.convert` write one wrong value."""

    def damaged(save: Callable[..., object]) -> Callable[..., object]:
        def save_damaged(source: Checkpoint, *arguments: object) -> object:
            state, head = dict(source.state), dict(source.head)
            for tensors, key in ((state, "norm.weight"), (head, "head.linear.conv.bias")):
                if key in tensors and (tensors is head) == (save.__name__ == "save_head"):
                    tensors[key] = tensors[key].clone()
                    tensors[key][1] += 0.5
            return save(dataclasses.replace(source, state=state, head=head), *arguments)

        return save_damaged

    for name in names:
        monkeypatch.setattr(convert_module, name, damaged(getattr(convert_module, name)))


@pytest.mark.parametrize("call", [convert_checkpoint, convert_head, convert_to_layout, verify])
def test_arguments_are_read_then_written_then_options_by_keyword(call: Callable[..., object]) -> None:
    parameters = inspect.signature(call).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position in (["checkpoint", "output"], ["checkpoint", "head", "output"], ["checkpoint", "against"])
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name not in by_position)


def test_package_exports_no_name_of_its_own_modules() -> None:
    modules = {path.stem for path in Path(conversion.__file__).parent.glob("*.py")}
    exported = {name for name in vars(conversion) if not isinstance(getattr(conversion, name), ModuleType)}
    assert not modules & exported


def test_conversion_returns_its_proof(source: Path, tmp_path: Path) -> None:
    done = convert_checkpoint(source, tmp_path / "ours")
    assert (done.output, done.layout, done.is_equal) == (tmp_path / "ours", "eupe", True)
    assert_same_bits(EupeModel.from_pretrained(done.output).state_dict(), done.source.state)
    assert {row.name for row in done.rows} == set(done.source.state)
    assert all(row.max_abs_error == 0 and row.shape == tuple(done.source.state[row.name].shape) for row in done.rows)
    assert done.values()["compared"] == len(done.rows)


def test_head_is_converted_alike_by_both_calls(source: Path, segmenter: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.pt"
    convert_to_layout(segmenter, tmp_path / "raw.pt", head=head)
    one = convert_head(source, head, tmp_path / "one", task="segmentation", layers=[1])
    other = convert_checkpoint(source, tmp_path / "other", head=head, task="segmentation", layers=[1])
    assert [dataclasses.astuple(row) for row in one.rows] == [dataclasses.astuple(row) for row in other.rows]
    assert "head.linear.conv.bias" in {row.name for row in one.rows}
    assert_same_bits(*(load_file(done.output / "model.safetensors") for done in (one, other)))
    with pytest.raises(OptionError, match="--head needs --task"):
        convert_checkpoint(source, tmp_path / "third", head=head)


# ---- proofs that fail ----


def assert_refused(call: Callable[[], Conversion], output: Path) -> Conversion:
    with pytest.raises(ConversionError, match="would differ from its source: nothing was written") as caught:
        call()
    failed = caught.value.conversion
    assert failed.output == output and not failed.is_equal
    assert failed.values()["max_abs_error"] == pytest.approx(0.5)
    return failed


@pytest.mark.parametrize("layout", ["eupe", "raw", "raw.safetensors", "dinov3"])
@pytest.mark.parametrize("exists", [False, True])
def test_failed_proof_leaves_the_output_as_it_was(
    layout: str, exists: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / ("raw.safetensors" if layout == "raw.safetensors" else f"{layout}.pt")
    if layout in ("eupe", "dinov3"):
        output = tmp_path / layout

    def convert() -> Conversion:
        if layout == "eupe":
            return convert_checkpoint(source, output)
        return convert_to_layout(source, output, layout="dinov3" if layout == "dinov3" else "raw")

    if exists:
        convert()
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    damage(monkeypatch, "save_model_folder", "save_layout")
    assert "norm.weight" in {row.name for row in assert_refused(convert, output).rows if row.max_abs_error}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert output.exists() == exists


def test_failed_proof_of_a_head_leaves_no_encoder(
    segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, "save_head")
    failed = assert_refused(
        lambda: convert_to_layout(segmenter, tmp_path / "raw.pt", head=tmp_path / "head.pt"), tmp_path / "raw.pt"
    )
    assert [row.name for row in failed.rows if row.max_abs_error] == ["head.linear.conv.bias"]
    assert [path.name for path in tmp_path.iterdir()] == ["segmenter"]


def test_download_that_fails_its_proof_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server, use_hub(server, tmp_path / "home"), monkeypatch.context() as patch:
        server.add_repo("facebook/EUPE-ViT-T", {"EUPE-ViT-T.pt": checkpoint()[0]})
        damage(patch, "save_model_folder")
        for _ in range(2):
            with pytest.raises(ConversionError, match="nothing was written"):
                fetch("eupe-t")
        assert [path.name for path in (tmp_path / "home" / "eupe-hf" / "eupe-t").iterdir()] == [".lock"]
        patch.undo()
        assert_same_bits(EupeModel.from_pretrained(fetch("eupe-t")).state_dict(), checkpoint()[1])


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    config = tiny_config("vit")
    file = save_tensors(random_state(config), tmp_path / "weights.safetensors").rename(tmp_path / "weights.part")
    assert_same_bits(load_checkpoint(file, config=config).state, random_state(config))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"cannot be read as a \.part checkpoint"):
        load_checkpoint(file, config=config)
