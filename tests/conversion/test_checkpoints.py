# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints, refusing what is not an EUPE encoder, and writing without breaking what was there."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    FAMILIES,
    LAYOUTS,
    assert_raw_came_back,
    assert_same_bits,
    build_model,
    published_state,
    random_state,
    tiny_config,
)
from safetensors.torch import load_file, save_file

from eupe_hf import EupeBackbone, EupeConfig, EupeModel, convert_checkpoint, variant_config
from eupe_hf.conversion import convert_to_layout
from eupe_hf.conversion.checkpoints import (
    PROJECTOR_FILE,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    read_state_dict,
    save_layout,
    save_model_folder,
)
from eupe_hf.conversion.layouts import StateDict, from_eupe, to_eupe
from eupe_hf.conversion.verification import frozen_pixel_values
from eupe_hf.staging import staged_file, staged_folder


PROJECTORS = {
    "projectors.proxy.cls.0.weight": torch.full((6, 4), 0.25),
    "projectors.heads.dinov3radio.bias": torch.arange(3.0),
}


@pytest.fixture(scope="module")
def raw_t(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw checkpoint of eupe-t with projectors, as a file."""
    path = tmp_path_factory.mktemp("raw") / "EUPE-ViT-T.pt"
    torch.save({**published_state("eupe-t"), **PROJECTORS}, path)
    return path


@pytest.fixture
def tiny() -> Checkpoint:
    """A tiny ViT, in memory."""
    config = tiny_config("vit")
    return Checkpoint(random_state(config), config, "eupe", None, {})


def write(state: Any, path: Path) -> Path:
    """Save in the format of the suffix."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


# ---- reading ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ""])
def test_every_file_format_gives_the_same_tensors(family: str, layout: str, suffix: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    path = write(random_state(config, layout), tmp_path / f"checkpoint{suffix}")
    loaded = load_checkpoint(path, config=config)
    assert (loaded.layout, loaded.variant, loaded.projectors) == (layout, None, {})
    assert_same_bits(loaded.state, random_state(config))


CONTAINERS = {
    "model": lambda state: {"model": state, "optimizer": {"lr": 1.0}, "iteration": 7},
    "state_dict": lambda state: {"state_dict": state},
    "teacher": lambda state: {"teacher": state, "student": {}},
    "beside a tensor": lambda state: {"step": torch.tensor(7), "model": state},
    "two deep": lambda state: {"state_dict": {"model": state}},
    "module.": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "backbone.": lambda state: {f"backbone.{key}": tensor for key, tensor in state.items()},
    "teacher.": lambda state: {f"teacher.{key}": tensor for key, tensor in state.items()},
    "all at once": lambda state: {"model": {f"module.teacher.backbone.{key}": t for key, t in state.items()}},
}


@pytest.mark.parametrize("wrap", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_containers_and_prefixes_are_unwrapped(family: str, wrap: Callable, tmp_path: Path) -> None:
    config = tiny_config(family)
    path = write(wrap({**random_state(config, "raw"), **PROJECTORS}), tmp_path / "wrapped.pt")
    loaded = load_checkpoint(path, config=config)
    assert_raw_came_back(from_eupe(loaded.state, config, "raw"), random_state(config, "raw"))
    assert_same_bits(loaded.projectors, PROJECTORS)


def test_torch_old_format_is_read(tmp_path: Path) -> None:
    config = tiny_config("vit")
    torch.save(random_state(config), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_bits(load_checkpoint(tmp_path / "old.pth", config=config).state, random_state(config))


def test_sharded_folder_is_read_as_one(tiny: Checkpoint, tmp_path: Path) -> None:
    tiny.build_model().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_bits(load_checkpoint(tmp_path).state, tiny.state)
    next(tmp_path.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*model-00002"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_gives_model_and_backbone(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    state = random_state(config)
    save_model_folder(Checkpoint(state, config, "raw", None, {}), tmp_path / "ours")
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(state)  # no aliases, no derived tensors
    for cls in (EupeModel, EupeBackbone):
        model, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_bits(model.state_dict(), state)
        tensors = [*model.parameters(), *model.buffers()]
        assert all(tensor.isfinite().all() and tensor.device.type == "cpu" for tensor in tensors)
    expected = build_model(state, config)(frozen_pixel_values(1, 64, 64)).pooler_output
    found = EupeModel.from_pretrained(tmp_path / "ours")(frozen_pixel_values(1, 64, 64)).pooler_output
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoint_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    config = tiny_config("vit")
    raw = {key: tensor.to(dtype) for key, tensor in random_state(config, "raw").items()}
    raw["rope_embed.periods"] = raw["rope_embed.periods"].float()
    loaded = load_checkpoint(write(raw, tmp_path / "half.pt"), config=config)
    assert {tensor.dtype for tensor in loaded.state.values()} == {dtype}
    folder = save_model_folder(loaded, tmp_path / "ours")
    assert EupeModel.from_pretrained(folder).dtype == dtype
    back = save_layout(load_checkpoint(folder), tmp_path / "back.pt", "raw")
    assert_raw_came_back(read_state_dict(back), raw)


def test_build_model_is_ready_to_run(tiny: Checkpoint) -> None:
    model = tiny.build_model()
    assert not model.training
    assert model.norm.weight.data_ptr() == tiny.state["norm.weight"].data_ptr()
    assert model(frozen_pixel_values(1, 32, 32)).pooler_output.isfinite().all()


# ---- refusing ----


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    config = tiny_config("vit")
    for name in ("whole.pt", "whole.safetensors"):
        whole = write(random_state(config), tmp_path / name).read_bytes()
        for size in (2, 9, 100, len(whole) // 2, len(whole) - 1):
            cut = tmp_path / f"cut-{name}"
            cut.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match="truncated or damaged: download it again") as caught:
                load_checkpoint(cut, config=config)
            assert f"{cut} ({size:,} bytes)" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"empty{suffix}"
    path.touch()
    with pytest.raises(CheckpointError, match=r"empty.* \(0 bytes\) cannot be read"):
        read_state_dict(path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_never_run(zipped: bool, tmp_path: Path) -> None:
    state = {**random_state(tiny_config("vit")), "extra": Payload(f"touch {tmp_path / 'ran'}")}
    torch.save(state, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=2)
    with pytest.raises(CheckpointError, match=r"\(posix\.system\): reading it would run code") as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)  # torch recommends loading it anyway
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(state["extra"], protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert (tmp_path / "ran").exists()  # the payload would have worked


TEXTS = ["<!DOCTYPE html><html>403 Forbidden</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:12\n"]


@pytest.mark.parametrize("text", TEXTS, ids=["page", "pointer"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_text_file_is_refused_by_its_first_words(suffix: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"download{suffix}"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"is a text file .*error page or a Git LFS pointer") as caught:
        read_state_dict(path)
    assert text[:30] in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}, [1, 2], {"model": [torch.ones(1)]}, "text"])
def test_file_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no state dict: expected tensors by name"):
        read_state_dict(write(content, tmp_path / "odd.pt"))


def test_file_of_numbered_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not an EUPE encoder\. Its first keys are 0, 1"):
        load_checkpoint(write({0: torch.ones(1), 1: torch.ones(1)}, tmp_path / "odd.pt"))


@pytest.mark.parametrize("name", ["", "missing.pt", "missing.safetensors"])
def test_path_without_weights_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*EUPE-ViT-S\.pt") as caught:
        load_checkpoint(tmp_path / name)
    assert str(tmp_path / (name or "model.safetensors")) in str(caught.value)


def test_encoder_of_another_size_is_refused_by_its_size(tmp_path: Path) -> None:
    state = {"cls_token": torch.zeros(1, 1, 1024)}
    for i in range(24):
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3072)
    path = write(state, tmp_path / "dinov3_vitl16.pt")
    with pytest.raises(
        CheckpointError, match="a ViT of width 1024 with 24 blocks, which is not one of the six"
    ) as caught:
        load_checkpoint(path)
    assert "eupe-convnext-b" in str(caught.value)


def test_wrong_variant_is_refused(raw_t: Path, tmp_path: Path) -> None:
    for name in ("eupe-s", "facebook/EUPE-ViT-S", "eupe_vits16"):
        with pytest.raises(CheckpointError, match="holds eupe-t, a ViT of width 192 with 12 blocks, not eupe-s"):
            load_checkpoint(raw_t, name)
    with pytest.raises(ValueError, match="Did you mean 'eupe-t'"):
        load_checkpoint(raw_t, "eupe-tt")
    folder = convert_checkpoint(raw_t, tmp_path / "ours", variant="EUPE-ViT-T").output
    with pytest.raises(CheckpointError, match="holds eupe-t"):  # also with a configuration beside the weights
        load_checkpoint(folder, "eupe-b")


def test_tiny_encoder_is_not_a_published_variant(tiny: Checkpoint, tmp_path: Path) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    assert load_checkpoint(folder).variant is None
    with pytest.raises(CheckpointError, match="holds a ViT of width 32 with 2 blocks, not eupe-t"):
        load_checkpoint(folder, "eupe-t")


def test_damage_in_a_published_file_names_the_key(raw_t: Path, tmp_path: Path) -> None:
    whole = {key: tensor for key, tensor in read_state_dict(raw_t).items() if not key.startswith("projectors.")}
    damages: dict[str, tuple[StateDict, str]] = {
        "missing": ({}, "1 missing ('blocks.3.ls1.gamma')"),
        "misshapen": ({"blocks.3.ls1.gamma": torch.ones(7)}, "'blocks.3.ls1.gamma' has shape (7,), expected (192,)"),
        "damaged": ({"blocks.3.ls1.gamma": torch.full((192,), torch.nan)}, "'blocks.3.ls1.gamma' holds 192 values"),
    }
    for name, (change, message) in damages.items():
        rest = {key: tensor for key, tensor in whole.items() if key != "blocks.3.ls1.gamma"}
        path = write({**rest, **change}, tmp_path / f"{name}.pt")
        for variant in (None, "eupe-t"):
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(path, variant)
            assert message in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"1 unexpected \('head\.weight'\)"):
        load_checkpoint(write({**whole, "head.weight": torch.ones(2)}, tmp_path / "added.pt"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_one_tensor_in_another_number_format_is_refused_for_every_layout(
    tiny: Checkpoint, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    state = read_state_dict(folder)
    save_file(state | {"norm.weight": state["norm.weight"].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    for layout, output in (("eupe", "a"), ("dinov3", "b"), ("raw", "c.pt")):
        with pytest.raises(CheckpointError, match=rf"ours holds tensors of several number formats .*{dtype}"):
            if layout == "eupe":
                convert_checkpoint(folder, tmp_path / output)
            else:
                convert_to_layout(folder, tmp_path / output, layout=layout)
        assert not (tmp_path / output).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "eupe", "hidden_size": "wide"}'])
def test_damaged_config_is_refused_by_name(tiny: Checkpoint, text: str, tmp_path: Path) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"ours/config\.json"):
        load_checkpoint(folder)


# ---- projectors ----


def test_projectors_are_dropped_unless_asked_for(raw_t: Path, tmp_path: Path) -> None:
    folder = convert_checkpoint(raw_t, tmp_path / "dropped").output
    assert not (folder / PROJECTOR_FILE).exists()
    assert load_checkpoint(folder).projectors == {}
    back = read_state_dict(save_layout(load_checkpoint(folder), tmp_path / "without.pt", "raw"))
    assert not any(key.startswith("projectors.") for key in back)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_projectors_are_kept_and_restored(raw_t: Path, suffix: str, tmp_path: Path) -> None:
    folder = convert_checkpoint(raw_t, tmp_path / "kept", keep_projectors=True).output
    assert_same_bits(load_file(folder / PROJECTOR_FILE), PROJECTORS)
    _, info = EupeModel.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    back = save_layout(load_checkpoint(folder), tmp_path / f"back{suffix}", "raw")
    assert_raw_came_back(read_state_dict(back), read_state_dict(raw_t))


def test_keeping_projectors_of_a_file_without_makes_no_file(tmp_path: Path) -> None:
    path = write(published_state("eupe-t"), tmp_path / "plain.safetensors")
    assert not (convert_checkpoint(path, tmp_path / "ours", keep_projectors=True).output / PROJECTOR_FILE).exists()


# ---- writing ----


def test_conversion_replaces_an_earlier_one_as_a_whole(raw_t: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    folder = convert_checkpoint(raw_t, tmp_path / "ours", keep_projectors=True).output
    save_model_folder(tiny, folder)
    assert_same_bits(load_checkpoint(folder).state, tiny.state)
    assert not (folder / PROJECTOR_FILE).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_interrupted_folder_leaves_the_old_one(
    interruption: type[BaseException], tiny: Checkpoint, tmp_path: Path
) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop(unfinished: Path) -> None:
        assert (unfinished / "model.safetensors").is_file()
        raise interruption

    for target in (folder, tmp_path / "new"):
        with pytest.raises(interruption):
            save_model_folder(tiny, target, stop)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_interruption_between_the_two_renames_leaves_the_old_folder(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    rename = Path.rename

    def stop_at_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_new)
    with pytest.raises(KeyboardInterrupt):
        save_model_folder(tiny, folder)
    assert_same_bits(load_checkpoint(folder).state, tiny.state)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("suffix", "saver"), [(".pt", "torch.save"), (".safetensors", "eupe_hf.conversion.checkpoints.save_file")]
)
def test_interrupted_file_leaves_the_old_one(
    suffix: str, saver: str, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_layout(tiny, tmp_path / f"raw{suffix}", "raw")
    before = path.read_bytes()

    def write_half(tensors: StateDict, file: Path, *args: Any) -> None:
        Path(file).write_bytes(before[: len(before) // 2])
        fail()

    monkeypatch.setattr(saver, write_half)
    for target in (path, tmp_path / f"new{suffix}"):
        with pytest.raises(OSError, match="No space left"):
            save_layout(tiny, target, "raw")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["notes.txt", "EUPE-ViT-T.pt", "config.json", "README.md", ".git"])
@pytest.mark.parametrize("layout", ["eupe", "dinov3"])
def test_folder_with_other_files_is_refused(name: str, layout: str, tiny: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text('{"model_type": "bert"}')
    with pytest.raises(FileExistsError, match="holds other files") as caught:
        save_layout(tiny, folder, layout)
    assert name in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [name]


def test_converted_folder_with_another_file_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    folder = save_model_folder(tiny, tmp_path / "ours")
    (folder / "training_log.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other files \(training_log\.txt\)"):
        save_model_folder(tiny, folder)
    assert (folder / "training_log.txt").read_text() == "mine"


def test_output_of_the_wrong_kind_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for layout in ("eupe", "dinov3"):
        with pytest.raises(FileExistsError, match="is a file; give a folder"):
            save_layout(tiny, tmp_path / "file", layout)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; give a file name"):
        save_layout(tiny, tmp_path / "folder", "raw")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(umask: int, tiny: Checkpoint, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        folders = [save_layout(tiny, tmp_path / layout, layout) for layout in ("eupe", "dinov3")]
        files = [save_layout(tiny, tmp_path / f"raw{suffix}", "raw") for suffix in (".pt", ".safetensors")]
    finally:
        os.umask(old)
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
        files += folder.iterdir()
    assert len(files) >= 8
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}


def test_staged_outputs_make_missing_parents(tmp_path: Path) -> None:
    with staged_file(tmp_path / "a" / "b" / "file") as file:
        file.write_text("x")
    with staged_folder(tmp_path / "c" / "d", check=lambda folder: None) as folder:
        (folder / "file").write_text("y")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    assert (tmp_path / "c" / "d" / "file").read_text() == "y"


def test_raw_file_holds_no_more_than_its_tensors(tiny: Checkpoint, tmp_path: Path) -> None:
    path = save_layout(tiny, tmp_path / "raw.pt", "raw")
    size = sum(tensor.numel() * 4 for tensor in read_state_dict(path).values())
    assert path.stat().st_size < 1.5 * size  # views would bring their whole storage


def test_fields_of_the_config_survive_the_way_to_disk(tmp_path: Path) -> None:
    config = tiny_config("vit", out_indices=[1, 2], pos_embed_rescale=None, image_size=384)
    folder = save_model_folder(Checkpoint(random_state(config), config, "raw", None, {}), tmp_path / "ours")
    loaded = load_checkpoint(folder).config
    assert (loaded.out_indices, loaded.pos_embed_rescale, loaded.image_size) == ([1, 2], None, 384)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 384, "width": 384}


def test_loading_gives_the_published_configuration(raw_t: Path) -> None:
    loaded = load_checkpoint(raw_t)
    assert isinstance(loaded.config, EupeConfig)
    assert loaded.config.to_dict() == variant_config("eupe-t").to_dict()
    ours, _ = to_eupe(published_state("eupe-t"), loaded.config, "raw")
    assert_same_bits(loaded.state, ours)
