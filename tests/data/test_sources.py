# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Kinds of data sets: which splits they have, what they load, and what they refuse."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from eupe_hf.data.coco import CocoFolder
from eupe_hf.data.folders import PairFolder, check_class_folders
from eupe_hf.data.loading import DataSet, Source, evenly, load_split, read_json
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Rows, UnreadableError
from eupe_hf.data.splits import load_splits, pick_source


COLUMNS = {"image": "image", "label": "label"}
OBJECTS = {"image": "image", "objects": "label"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), grey).save(path)


def class_folders(root: Path) -> None:
    for split, name in (("train", "cat"), ("train", "dog"), ("validation", "cat"), ("validation", "dog")):
        picture(root / split / name / "0.png")


def tables(root: Path) -> None:
    root.mkdir()
    data = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 6))] * 3, "label": [0, 1, 0]})
    for split in ("train", "validation"):
        data.to_parquet(root / f"{split}.parquet")


def saved(root: Path) -> None:
    data = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 6))] * 3, "label": [0, 1, 0]})
    datasets.DatasetDict({"train": data, "validation": data}).save_to_disk(root)


def saved_alone(root: Path) -> None:
    datasets.Dataset.from_dict({"image": [Image.new("L", (8, 6))] * 3, "label": [0, 1, 0]}).save_to_disk(root)


def pairs(root: Path) -> None:
    for split in ("train", "validation"):
        picture(root / split / "images" / "0.png")
        picture(root / split / "masks" / "0.png")


def pairs_alone(root: Path) -> None:
    picture(root / "images" / "0.png")
    picture(root / "masks" / "0.png")


def coco(root: Path, name: str = "{split}/_annotations.coco.json", splits: tuple[str, ...] = ("train", "val")) -> None:
    """Two images, the second without objects; the categories have gaps, and a group that no box is of."""
    for split in splits:
        file = root / name.format(split=split)
        for image in ("0.png", "1.png"):
            picture((root if file.parent == root else file.parent) / "images" / image)
        categories = [{"id": 0, "name": "things", "supercategory": "none"}]
        categories += [{"id": i, "name": name, "supercategory": "things"} for i, name in ((7, "cup"), (3, "box"))]
        content = {"images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)], "categories": categories}
        boxes = [{"image_id": 0, "bbox": [1, 2, 3, 4.5], "category_id": 7, "iscrowd": 0},
                 {"image_id": 0, "bbox": [0, 0, 5, 5], "category_id": 3, "iscrowd": 1}]  # fmt: skip
        file.write_text(json.dumps({**content, "annotations": boxes}))


def coco_alone(root: Path) -> None:
    coco(root, "annotations.json", ("train",))


@pytest.mark.parametrize(
    ("make", "columns", "kind", "splits", "why"),
    [
        (class_folders, COLUMNS, DataSet, {"train", "validation"}, None),
        (tables, COLUMNS, DataSet, {"train", "validation"}, None),
        (saved, COLUMNS, DataSet, {"train", "validation"}, "what save_to_disk wrote is read from the disk anyway"),
        (saved_alone, COLUMNS, DataSet, {"train"}, "what save_to_disk wrote is read from the disk anyway"),
        (pairs, COLUMNS, PairFolder, {"train", "validation"}, "its images and masks are matched by listing them all"),
        (pairs_alone, COLUMNS, PairFolder, {"train"}, "its images and masks are matched by listing them all"),
        (coco, OBJECTS, CocoFolder, {"train", "validation"}, "COCO's JSON has the boxes apart from the images"),
        (coco_alone, OBJECTS, CocoFolder, {"train"}, "COCO's JSON has the boxes apart from the images"),
    ],
)
def test_source_says_its_splits_and_whether_it_streams(
    tmp_path: Path,
    make: Callable[[Path], None],
    columns: dict[str, str],
    kind: type[Source],
    splits: set[str],
    why: Any,
) -> None:
    make(tmp_path / "data")
    arguments = DataArguments(str(tmp_path / "data"))
    source = pick_source(arguments, columns)
    assert type(source) is kind and set(source.splits()) == splits
    assert source.eval_split() == ("validation" if "validation" in splits else None)
    data = source.load("train")
    assert {"image", "label"} <= set(data.column_names) and len(data) >= 1
    assert isinstance(data[0]["image"], dict)  # not decoded
    arguments.streaming = True
    if why is None:
        assert not source.unstreamable and isinstance(source.load("train"), datasets.IterableDataset)
        return
    with pytest.raises(ValueError, match=f"data cannot be streamed: {why}; leave out --streaming"):
        load_splits(arguments, columns, seed=0)


def test_boxes_of_coco_are_read_for_detection_alone(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    assert isinstance(pick_source(DataArguments(str(tmp_path / "data")), OBJECTS), CocoFolder)
    assert not isinstance(pick_source(DataArguments(str(tmp_path / "data")), COLUMNS), CocoFolder)


def test_data_sets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    tables(tmp_path / "data")
    for call in (lambda: load_split("nobody/nothing", "train", {}), DataSet(DataArguments("nobody"), {}).splits):
        with pytest.raises(ValueError, match=r"The data set nobody.* cannot be loaded: "):
            call()
    with pytest.raises(ValueError, match=r"has no column 'kind' for the label; it has image, label\. A folder"):
        load_split(str(tmp_path / "data"), "train", {"label": "kind"})
    with pytest.raises(ValueError, match="has no column 'pictures' for the source image; it has image, label"):
        load_split(str(tmp_path / "data"), "train", {"source_image": "pictures"})
    saved(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"Unknown split 'test'. Should be one of \['train', 'validation'\]"):
        load_split(str(tmp_path / "saved"), "test", {})
    datasets.Dataset.from_list([{"label": 0}]).filter(lambda row: False).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"The split 'train' of .*empty is empty"):
        load_split(str(tmp_path / "empty"), "train", {})


def test_single_files_hold_the_split(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "label": 1}\n{"image": null, "label": 2}\n')
    data = load_split(str(tmp_path / "rows.jsonl"), "any", COLUMNS, image_folder="pictures")
    assert data["label"][:] == [1, 2]
    assert data[0]["image"]["path"] == str(Path("pictures") / "a.png") and data[1]["image"] is None


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.png", "b/../../a.png"])
@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_columns_stay_below_their_folder(tmp_path: Path, name: str, streaming: bool) -> None:
    (tmp_path / "data").mkdir()
    file, inside = tmp_path / "data" / "rows.jsonl", str(tmp_path / "data" / "c.png")
    names = ["a.png", "b/../a.png", inside, "https://example.org/a.png"]
    file.write_text("\n".join(json.dumps({"image": each, "label": 1}) for each in names))
    folder = str(tmp_path / "data")
    data = load_split(str(file), "any", COLUMNS, streaming=streaming, image_folder=folder)
    placed = [f"{folder}/a.png", f"{folder}/a.png", inside, "https://example.org/a.png"]
    assert [row["image"]["path"] for row in data] == placed
    file.write_text(json.dumps({"image": name, "label": 1}))
    with pytest.raises(ValueError, match=rf"Row 0, 'image': '{name}' is not a file below .*, and is not"):
        list(load_split(str(file), "any", COLUMNS, streaming=streaming, image_folder=folder))


def test_items_are_evenly_spaced() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly("abc", None) == evenly("abc", 9) == ["a", "b", "c"]


# ---- folders of pairs ----


def test_pairs_are_joined_by_their_names(tmp_path: Path) -> None:
    for i in (10, 9, 2):
        picture(tmp_path / "images" / f"{i}.jpg")
    for i in (2, 9):
        picture(tmp_path / "depth" / f"{i}.png")
    np.save(tmp_path / "depth" / "10.npy", np.zeros((6, 8)))
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    arguments = DataArguments(str(tmp_path), label_column="depth_map")
    data = pick_source(arguments, {"image": "image", "label": "depth_map"}, "depth").load("train")
    names = [(Path(row["image"]["path"]).name, Path(row["depth_map"]["path"]).name) for row in data]
    assert names == [("10.jpg", "10.npy"), ("2.jpg", "2.png"), ("9.jpg", "9.png")]
    arguments.limit = 2
    assert len(pick_source(arguments, COLUMNS, "depth").load("train")) == 2


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pairs_alone(tmp_path)
    source = pick_source(DataArguments(str(tmp_path)), COLUMNS)
    picture(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match=r"1 files in .* have no partner: '1' is missing in masks"):
        source.load("train")
    for i in (0, 1):
        (tmp_path / "images" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"There are no images in .*images"):
        source.load("train")
    with pytest.raises(ValueError, match=r"must be a folder with images/NAME\.jpg and depth/NAME\.png"):
        pick_source(DataArguments(str(tmp_path)), COLUMNS, "depth").load("train")


def test_class_folders_without_images_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    check_class_folders(str(tmp_path / "data"))
    check_class_folders("nobody/nothing")  # not a folder: perhaps on the Hub
    (tmp_path / "data" / ".cache").mkdir()
    check_class_folders(str(tmp_path / "data"))
    (tmp_path / "data" / "train" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"The class folder .*bird has no images: fill it or remove it"):
        check_class_folders(str(tmp_path / "data"))
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"There are no images in .*empty"):
        check_class_folders(str(tmp_path / "empty"))


# ---- COCO's JSON ----


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("annotations.json", ("train",)),
        ("{split}.json", ("train", "validation")),
        ("{split}/annotations.json", ("train", "valid")),
        ("{split}/_annotations.coco.json", ("train", "val")),
    ],
)
def test_layouts_of_coco_give_the_same_rows(tmp_path: Path, name: str, splits: tuple[str, ...]) -> None:
    coco(tmp_path, name, splits)
    source = pick_source(DataArguments(str(tmp_path)), OBJECTS)
    for split in source.splits():
        data = source.load(split)
        feature = data.features["label"]
        assert feature["category"].feature.names == ["box", "cup"]  # by id, without the group
        assert [Path(row["image"]["path"]).is_file() for row in data] == [True, True]
        assert data[0]["label"] == {"bbox": [[1, 2, 3, 4.5], [0, 0, 5, 5]], "category": [1, 0], "iscrowd": [0, 1]}
        assert data[1]["label"] == {"bbox": [], "category": [], "iscrowd": []}


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["categories"].pop(), r"annotations\[1\] is of the category 3, which is not among its categories"),
        (
            lambda c: c["categories"][1].update(name="box"),
            r"categories\[1\] calls the category 7 '.*', and another place",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=9),
            r"annotations\[0\] is of the image 9, which is not among its images",
        ),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotations\[0\] has no bbox, it must have image_id, bbox, categ",
        ),
        (lambda c: c.pop("categories"), "has no list of categories: it must be COCO's JSON for detection"),
        (lambda c: c.update(images=[], annotations=[]), "has no images"),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path: Path, edit: Callable[[Any], None], words: str) -> None:
    coco(tmp_path)
    change(tmp_path / "train" / "_annotations.coco.json", edit)
    source = pick_source(DataArguments(str(tmp_path)), OBJECTS)
    with pytest.raises(ValueError, match=words):
        source.load("train")


NO_ID = (None, [], {}, True, "", math.nan)
FIELDS = [
    ("images", "id", NO_ID),
    ("images", "file_name", (None, 5, ["a.png"], "")),
    ("annotations", "image_id", (*NO_ID, "0", 9)),
    ("annotations", "category_id", (*NO_ID, "7", 9)),
    ("annotations", "bbox", (None, [], [[1, 2, 3, 4]], [1, 2, 3], [1, 2, None, 4], ["1", 2, 3, 4], "1 2 3 4", 5)),
    ("annotations", "iscrowd", ("0", [0], 2, {})),
    ("categories", "id", NO_ID),
    ("categories", "name", (None, [], {}, "")),
]


@pytest.mark.parametrize(("table", "field", "values"), FIELDS, ids=[f"{table}-{field}" for table, field, _ in FIELDS])
def test_each_field_of_coco_is_checked_and_named(tmp_path: Path, table: str, field: str, values: Any) -> None:
    coco(tmp_path)
    file = tmp_path / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    missing = object()
    for value in (*values, *([missing] if field != "iscrowd" else []), "entry"):
        changed = json.loads(json.dumps(content))
        entry = changed[table][1]
        if value is missing:
            del entry[field]
        elif value == "entry":
            changed[table][1] = 5
        else:
            entry[field] = value
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {table}\[1\] ") as raised:
            pick_source(DataArguments(str(tmp_path)), OBJECTS).load("train")
        assert value in (missing, "entry") or field.removesuffix("_id") in str(raised.value)


def test_ids_of_another_type_are_refused_with_the_cause(tmp_path: Path) -> None:
    coco(tmp_path)
    change(tmp_path / "train" / "_annotations.coco.json", lambda c: c["annotations"][0].update(category_id="7"))
    with pytest.raises(
        ValueError, match=r"the category '7', which .* It is text in one place and a number in the other"
    ):
        pick_source(DataArguments(str(tmp_path)), OBJECTS).load("train")


def test_coco_takes_missing_crowd_marks_and_ids_that_are_text(tmp_path: Path) -> None:
    coco(tmp_path)

    def edit(content: Any) -> None:
        for image in content["images"]:
            image["id"] = f"photo {image['id']}"
        for category in content["categories"]:
            category["id"] = f"c{category['id']}"
        for annotation in content["annotations"]:
            annotation |= {
                "image_id": f"photo {annotation['image_id']}",
                "category_id": f"c{annotation['category_id']}",
            }
        content["annotations"][0]["iscrowd"] = None

    for split in ("train", "val"):
        change(tmp_path / split / "_annotations.coco.json", edit)
    data = pick_source(DataArguments(str(tmp_path)), OBJECTS).load("train")
    assert data.features["label"]["category"].feature.names == ["box", "cup"]
    assert data[0]["label"] == {"bbox": [[1, 2, 3, 4.5], [0, 0, 5, 5]], "category": [1, 0], "iscrowd": [0, 1]}


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    change(tmp_path / "train" / "_annotations.coco.json", lambda c: c["images"][1].update(id=0))
    with pytest.raises(ValueError, match=r"images\[0\] and images\[1\] have one id, 0"):
        pick_source(DataArguments(str(tmp_path)), OBJECTS).load("train")


def test_json_of_any_kind_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(file) == [1]
    for content, words in (
        (b"[" * 100_000, "is JSON that is nested too deep"), (b"{", "is not a JSON file: "),
        (b"\xff\xfe", "is not a JSON file: "), (b"", "is not a JSON file: "), (b"1" * 5000, "is not a JSON file: "),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.json {words}"):
            read_json(file)


def test_tables_of_paths_load_from_csv_and_json(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 9)
    path = str(tmp_path / "a.png")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text(f"image,label\n{path},0\n{path},1\n")
    (tmp_path / "json").mkdir()
    lines = [{"image": path, "label": 0}, {"image": path, "label": 1}]
    (tmp_path / "json" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for kind in ("csv", "json"):
        rows = Rows(load_split(str(tmp_path / kind), "train", COLUMNS), COLUMNS, {0: 0, 1: 1})
        assert [cells[1] for cells in rows] == [0, 1] and rows[1][0].getpixel((0, 0)) == 9


def test_one_faulty_cell_of_a_json_table_does_not_hide_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines = [{"image": str(tmp_path / "a.png"), "label": 0}, {"image": 5, "label": 1}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = Rows(load_split(str(tmp_path), "train", COLUMNS), COLUMNS, {0: 0, 1: 1})
    assert rows[0][1] == 0
    with pytest.raises(UnreadableError, match="Row 1, 'image' is not an image but of type int"):
        rows[1]


def test_tables_that_cannot_be_read_are_refused_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("image,label\na.png,0\nb.png,1,2\n")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*: Error tokenizing data\. .* line 3"):
        load_split(str(tmp_path), "train", COLUMNS)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text('null\n{"image": "a.png", "label": 0}\n')  # pyarrow ends the process
    with pytest.raises(ValueError, match=r"train\.jsonl begins with null: each line must be a JSON object"):
        load_split(str(tmp_path), "train", COLUMNS)


def test_only_the_files_of_the_run_are_read(tmp_path: Path) -> None:
    coco(tmp_path, "{split}.json", ("train", "validation", "test"))
    (tmp_path / "validation.json").write_text("{")
    arguments = DataArguments(str(tmp_path), eval_split="test")
    source = pick_source(arguments, OBJECTS)
    assert len(source.load("train")) == len(source.load("test")) == 2
    with pytest.raises(ValueError, match=r"validation\.json is not a JSON file: "):
        pick_source(DataArguments(str(tmp_path)), OBJECTS).load("train")
    with pytest.raises(ValueError, match=r"has no other\.json and no other/annotations\.json or other/_annotations"):
        pick_source(DataArguments(str(tmp_path), eval_split="other"), OBJECTS).load("train")
    with pytest.raises(ValueError, match="name their categories: leave out --labels"):
        pick_source(DataArguments(str(tmp_path), eval_split="test", labels="names.txt"), OBJECTS).load("train")
