# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many images: the file, runs that are stopped and repeated, bad images, search."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, fill_shared_memory, tiny_config
from PIL import Image

from eupe_hf import EupeImageProcessorPil, EupeModel
from eupe_hf.features import FeatureFile, find_images, nearest_images, read_features, save_features
from eupe_hf.features import extraction as features
from eupe_hf.features import files as feature_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images in two folders, one of them damaged, and a text."""
    generator = np.random.default_rng(0)
    for i in range(7):
        path = tmp_path / "images" / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "a" / "3.png").write_bytes(b"no picture")
    (tmp_path / "images" / "notes.txt").write_text("no image either")
    return tmp_path / "images"


def model_and_processor(family: str = "vit") -> tuple[EupeModel, EupeImageProcessorPil]:
    torch.manual_seed(0)
    model = EupeModel(tiny_config(family)).eval()
    return model, EupeImageProcessorPil(size={"height": 64, "width": 64})


@pytest.mark.parametrize("suffix", features.FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_file_holds_the_features_of_every_readable_image(
    folder: Path, tmp_path: Path, family: str, suffix: str
) -> None:
    model, processor = model_and_processor(family)
    paths = find_images([folder])
    assert [path.name for path in paths] == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png", "6.png"]
    summary = save_features(model, processor, paths, tmp_path / f"out{suffix}", batch_size=2, num_workers=0)
    assert (summary.count, summary.resumed) == (6, 0)
    assert [Path(path).name for path in summary.skipped] == ["3.png"]
    assert "can't be read" in next(iter(summary.skipped.values()))
    found = read_features(tmp_path / f"out{suffix}")
    assert [Path(path).name for path in found.paths] == ["1.png", "5.png", "0.png", "2.png", "4.png", "6.png"]
    for path, feature in zip(found.paths, found.features, strict=True):
        with torch.no_grad():
            expected = model(**processor(path, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"images", f"out{suffix}"}
    again = save_features(model, processor, paths, tmp_path / f"out{suffix}", batch_size=2, num_workers=0)
    assert (again.count, again.resumed, again.skipped) == (6, 7, summary.skipped)


def test_stopped_run_goes_on_to_the_same_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_PART_BATCHES", 1)
    model, processor = model_and_processor()
    paths, options = find_images([folder]), {"batch_size": 2, "num_workers": 0}
    save_features(model, processor, paths, tmp_path / "whole.safetensors", **options)
    encode, calls = features.encode_images, []

    def stop(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(features, "encode_images", stop)
    with pytest.raises(KeyboardInterrupt):
        save_features(model, processor, paths, tmp_path / "cut.safetensors", **options)
    assert not (tmp_path / "cut.safetensors").exists()
    with pytest.raises(ValueError, match="other images, another model or another batch size"):
        save_features(model, processor, paths[1:], tmp_path / "cut.safetensors", **options)
    summary = save_features(model, processor, paths, tmp_path / "cut.safetensors", **options)
    assert (summary.count, summary.resumed, len(summary.skipped)) == (6, 4, 1)
    assert len(calls) == 3 + 2  # the two parts that were missing
    found, expected = (read_features(tmp_path / f"{name}.safetensors") for name in ("cut", "whole"))
    assert found.paths == expected.paths and found.model == expected.model
    assert torch.equal(found.features, expected.features)


def test_wrong_input_is_answered_by_a_sentence(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    paths = find_images([folder])
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.parquet, got out\.csv"):
        save_features(model, processor, paths, tmp_path / "out.csv")
    with pytest.raises(ValueError, match=r"3\.png' can't be read"):
        save_features(model, processor, paths, tmp_path / "strict.safetensors", num_workers=0, strict=True)
    native = EupeImageProcessorPil(do_resize=False)
    with pytest.raises(ValueError, match="several sizes"):
        save_features(model, native, paths, tmp_path / "sizes.safetensors", num_workers=0)
    save_features(model, processor, paths, tmp_path / "out.safetensors", num_workers=0)
    with pytest.raises(ValueError, match="other images or another model"):
        save_features(model, processor, paths[:2], tmp_path / "out.safetensors", num_workers=0)
    summary = save_features(model, processor, paths[:1], tmp_path / "out.safetensors", num_workers=0, overwrite=True)
    assert summary.count == 1
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        find_images([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There are no images in"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ValueError, match="No images"):
        find_images([])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds no features with paths"):
        read_features(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_full_shared_memory_gives_the_same_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    model, processor = model_and_processor()
    paths, tried = find_images([folder]), tmp_path / "tried"
    save_features(model, processor, paths, tmp_path / "expected.safetensors", batch_size=2, num_workers=num_workers)
    fill_shared_memory(monkeypatch, tried)
    save_features(model, processor, paths, tmp_path / "found.safetensors", batch_size=2, num_workers=num_workers)
    found, expected = (read_features(tmp_path / f"{name}.safetensors") for name in ("found", "expected"))
    assert tried.exists() == (num_workers > 0)
    assert found.paths == expected.paths and torch.equal(found.features, expected.features)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", features.FORMATS)
def test_all_images_bad_gives_an_empty_file(tmp_path: Path, suffix: str, family: str) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    model, processor = model_and_processor(family)
    summary = save_features(model, processor, [tmp_path / "bad.png"], tmp_path / f"out{suffix}", num_workers=0)
    assert summary.count == 0 and len(summary.skipped) == 1
    found = read_features(tmp_path / f"out{suffix}")
    assert found.paths == [] and len(found.features) == 0
    with pytest.raises(ValueError, match="The index holds no images"):
        nearest_images(found, torch.zeros(model.config.hidden_size))


def test_image_that_is_named_twice_counts_once(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    paths = [folder / "b" / "0.png", folder / "b" / "2.png", str(folder / "b" / "." / "0.png")]
    for batch_size in (1, 3):
        output = tmp_path / f"{batch_size}.safetensors"
        assert save_features(model, processor, paths, output, batch_size, num_workers=0).count == 2
        assert [Path(path).name for path in read_features(output).paths] == ["0.png", "2.png"]


def test_other_weights_of_the_same_name_are_another_job(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    save_features(model, processor, find_images([folder]), tmp_path / "out.safetensors", num_workers=0)
    with torch.no_grad():
        model.norm.weight[0] += 1  # the last of all tensors
    with pytest.raises(ValueError, match="other images or another model"):
        save_features(model, processor, find_images([folder]), tmp_path / "out.safetensors", num_workers=0)


def test_paths_that_a_format_cannot_hold_are_refused_before_anything_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = model_and_processor()
    foreign = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    Image.new("RGB", (20, 20)).save(foreign)
    with pytest.raises(ValueError, match=r"udce9\.png' is not UTF-8, as \.parquet needs"):
        save_features(model, processor, [foreign], tmp_path / "out.parquet", num_workers=0)
    save_features(model, processor, [foreign], tmp_path / "out.safetensors", num_workers=0)
    assert read_features(tmp_path / "out.safetensors").paths == [str(foreign)]
    monkeypatch.setattr(feature_files, "_LARGEST_HEADER", 200)
    with pytest.raises(ValueError, match=r"can't hold the paths of 7 images: choose \.parquet"):
        save_features(model, processor, find_images([folder / "a", folder / "b"]), tmp_path / "many.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.safetensors"}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", "b"], "has no columns path and features, lists of numbers"),
        ([[1.0], [1.0, 2.0]], "several widths"),
        ([[1.0], None], "several widths"),
    ],
)
def test_foreign_parquet_is_refused(tmp_path: Path, column: list, words: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": ["x", "y"], "features": column}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match=words):
        read_features(tmp_path / "foreign.parquet")


def test_nearest_images_are_the_most_similar() -> None:
    index = FeatureFile(["x", "y", "z"], torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]), "eupe-t")
    found = nearest_images(index, torch.tensor([5.0, 0.0]), count=2)
    assert [path for path, _ in found] == ["x", "z"]
    assert [similarity for _, similarity in found] == pytest.approx([1.0, 2**-0.5])
    with pytest.raises(ValueError, match=r"shape \(3,\).*compute both with one model, eupe-t"):
        nearest_images(index, torch.zeros(3))


def test_metadata_is_json_that_others_can_read(folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    model, processor = model_and_processor()
    save_features(model, processor, find_images([folder]), tmp_path / "out.safetensors", num_workers=0)
    with safe_open(tmp_path / "out.safetensors", framework="np") as file:
        assert len(json.loads(file.metadata()["paths"])) == len(file.get_tensor("features")) == 6
