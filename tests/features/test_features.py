# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many images: the file, runs that are stopped and repeated, bad images, search."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, fill_shared_memory, tiny_config
from odd_pictures import BAD, GOOD
from PIL import Image

from eupe_hf import EupeImageProcessorPil, EupeModel
from eupe_hf.features import FeatureFile, compute_features, find_images, nearest_images, read_features, save_features
from eupe_hf.features import extraction as features


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


@pytest.mark.parametrize("family", FAMILIES)
def test_file_holds_the_features_of_every_readable_image(folder: Path, tmp_path: Path, family: str) -> None:
    model, processor = model_and_processor(family)
    paths = find_images([folder])
    assert [path.name for path in paths] == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png", "6.png"]
    summary = save_features(model, processor, paths, tmp_path / "out.parquet", batch_size=2, num_workers=0)
    assert (summary.count, summary.resumed) == (6, 0)
    assert [Path(path).name for path in summary.skipped] == ["3.png"]
    assert "can't be read" in next(iter(summary.skipped.values()))
    found = read_features(tmp_path / "out.parquet")
    assert [Path(path).name for path in found.paths] == ["1.png", "5.png", "0.png", "2.png", "4.png", "6.png"]
    for path, feature in zip(found.paths, found.features, strict=True):
        with torch.no_grad():
            expected = model(**processor(path, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.parquet"}
    again = save_features(model, processor, paths, tmp_path / "out.parquet", batch_size=2, num_workers=0)
    assert (again.count, again.resumed, again.skipped) == (6, 7, summary.skipped)


def test_pictures_as_real_files_are_have_features_and_the_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, content in (GOOD | BAD).items():
        (tmp_path / "images" / name).write_bytes(content)
    model, processor = model_and_processor("vit")
    summary = save_features(
        model, processor, find_images([tmp_path / "images"]), tmp_path / "a.parquet", num_workers=0
    )
    assert {Path(path).name for path in read_features(tmp_path / "a.parquet").paths} == GOOD.keys()
    assert {Path(path).name for path in summary.skipped} == BAD.keys()
    for path, why in summary.skipped.items():
        assert why.startswith(f"images[0] {path!r}") and "\n" not in why and len(why) < 300


def test_stopped_run_goes_on_to_the_same_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_PART_BATCHES", 1)
    model, processor = model_and_processor()
    paths, options = find_images([folder]), {"batch_size": 2, "num_workers": 0}
    save_features(model, processor, paths, tmp_path / "whole.parquet", **options)
    encode, calls = features.encode_images, []

    def stop(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(features, "encode_images", stop)
    with pytest.raises(KeyboardInterrupt):
        save_features(model, processor, paths, tmp_path / "cut.parquet", **options)
    assert not (tmp_path / "cut.parquet").exists()
    with pytest.raises(ValueError, match="used other images, another model or another batch size"):
        save_features(model, processor, paths[1:], tmp_path / "cut.parquet", **options)
    summary = save_features(model, processor, paths, tmp_path / "cut.parquet", **options)
    assert (summary.count, summary.resumed, len(summary.skipped)) == (6, 4, 1)
    assert len(calls) == 3 + 2  # the two parts that were missing
    found, expected = (read_features(tmp_path / f"{name}.parquet") for name in ("cut", "whole"))
    assert found.paths == expected.paths and found.model == expected.model
    assert torch.equal(found.features, expected.features)


def test_wrong_input_gets_a_one_line_message(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    paths = find_images([folder])
    with pytest.raises(ValueError, match=r"must be a \.parquet file, got out\.csv"):
        save_features(model, processor, paths, tmp_path / "out.csv")
    with pytest.raises(ValueError, match=r"3\.png' can't be read"):
        save_features(model, processor, paths, tmp_path / "strict.parquet", num_workers=0, strict=True)
    native = EupeImageProcessorPil(do_resize=False)
    with pytest.raises(ValueError, match=r"several sizes, .*: set its size to a height and width"):
        save_features(model, native, paths, tmp_path / "sizes.parquet", num_workers=0)
    save_features(model, processor, paths, tmp_path / "out.parquet", num_workers=0)
    with pytest.raises(ValueError, match="other images or another model"):
        save_features(model, processor, paths[:2], tmp_path / "out.parquet", num_workers=0)
    summary = save_features(model, processor, paths[:1], tmp_path / "out.parquet", num_workers=0, overwrite=True)
    assert summary.count == 1
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        find_images([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There are no images in"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ValueError, match="No images"):
        find_images([])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as a \.parquet file"):
        read_features(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_full_shared_memory_gives_the_same_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    model, processor = model_and_processor()
    paths, tried = find_images([folder]), tmp_path / "tried"
    save_features(model, processor, paths, tmp_path / "expected.parquet", batch_size=2, num_workers=num_workers)
    fill_shared_memory(monkeypatch, tried)
    save_features(model, processor, paths, tmp_path / "found.parquet", batch_size=2, num_workers=num_workers)
    found, expected = (read_features(tmp_path / f"{name}.parquet") for name in ("found", "expected"))
    assert tried.exists() == (num_workers > 0)
    assert found.paths == expected.paths and torch.equal(found.features, expected.features)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_images_bad_gives_an_empty_file(tmp_path: Path, family: str) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    model, processor = model_and_processor(family)
    summary = save_features(model, processor, [tmp_path / "bad.png"], tmp_path / "out.parquet", num_workers=0)
    assert summary.count == 0 and len(summary.skipped) == 1
    found = read_features(tmp_path / "out.parquet")
    assert found.paths == [] and len(found.features) == 0
    with pytest.raises(ValueError, match="The index holds no images"):
        nearest_images(found, torch.zeros(model.config.hidden_size))


def test_image_that_is_named_twice_counts_once(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    paths = [folder / "b" / "0.png", folder / "b" / "2.png", str(folder / "b" / "." / "0.png")]
    for batch_size in (1, 3):
        output = tmp_path / f"{batch_size}.parquet"
        assert save_features(model, processor, paths, output, batch_size, num_workers=0).count == 2
        assert [Path(path).name for path in read_features(output).paths] == ["0.png", "2.png"]


def test_other_weights_of_the_same_name_are_another_job(folder: Path, tmp_path: Path) -> None:
    model, processor = model_and_processor()
    save_features(model, processor, find_images([folder]), tmp_path / "out.parquet", num_workers=0)
    with torch.no_grad():
        model.norm.weight[0] += 1  # the last of all tensors
    with pytest.raises(ValueError, match="other images or another model"):
        save_features(model, processor, find_images([folder]), tmp_path / "out.parquet", num_workers=0)


def test_file_names_that_are_not_utf8_come_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_PART_BATCHES", 1)  # a part with names of each kind
    model, processor = model_and_processor()
    foreign = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    Image.new("RGB", (20, 20)).save(foreign)
    images = [folder / "b" / "0.png", foreign, folder / "b" / "2.png"]
    for order in (images, images[1:]):
        output = tmp_path / f"{len(order)}.parquet"
        save_features(model, processor, order, output, batch_size=1, num_workers=0)
        assert read_features(output).paths == list(map(str, order))
        column = pytest.importorskip("pyarrow.parquet").read_table(output)["path"].to_pylist()
        assert os.fsencode(foreign) in column
    assert {path.name for path in tmp_path.iterdir()} == {"images", "2.parquet", "3.parquet"}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", "b"], "lacks the columns of a feature file: path, and features with lists"),
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


def test_others_can_read_the_file(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    model, processor = model_and_processor()
    save_features(model, processor, find_images([folder]), tmp_path / "out.parquet", num_workers=0)
    table, found = parquet.read_table(tmp_path / "out.parquet"), read_features(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == found.paths and len(found.paths) == 6
    assert torch.equal(torch.tensor(table["features"].to_pylist()), found.features)
    assert [str(field.type) for field in table.schema] == ["string", "list<element: float>"]
    assert json.loads(table.schema.metadata[b"skipped"]).keys() == {str(folder / "a" / "3.png")}


def test_without_pyarrow_images_can_be_searched_and_the_message_names_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = model_and_processor()
    images = find_images([folder])
    save_features(model, processor, images, tmp_path / "out.parquet", batch_size=2, num_workers=0)
    expected = read_features(tmp_path / "out.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow, which is not installed: pip install 'eupe-hf\[eval\]'"):
        save_features(model, processor, images, tmp_path / "none.parquet")
    with pytest.raises(ImportError, match="needs pyarrow"):
        read_features(tmp_path / "out.parquet")
    found = compute_features(model, processor, images, batch_size=2, num_workers=0)
    assert found.paths == expected.paths and torch.equal(found.features, expected.features)
    (nearest, similarity), *_ = nearest_images(found, expected.features[2])
    assert nearest == expected.paths[2] and similarity == pytest.approx(1)
