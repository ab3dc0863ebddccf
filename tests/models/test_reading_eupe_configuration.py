# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Whatever the fields of a `config.json` hold, every class raises one error with the folder and the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_common import tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from vlm_common import make_vlm

from eupe_hf import (
    EupeConfig,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeLlavaForConditionalGeneration,
    EupeModel,
)
from eupe_hf.conversion.inspect import describe
from eupe_hf.models.configuration_eupe_multitask import EupeMultiTaskConfig


WRONG = [
    ("id2label", "x"), ("id2label", [1]), ("label2id", 3), ("num_labels", 10_000_000), ("num_labels", "two"),
    ("dtype", 5), ("dtype", "nn"), ("dtype", "int64"), ("dtype", {"a": 1}), ("auto_map", [1]),
    ("attn_implementation", [1]), ("quantization_config", {}), ("quantization_config", "x"), ("to_dict", 1),
    ("__class__", "x"), ("architectures", "EupeModel"), ("layerscale_value", {"a": None}), ("hidden_act", 3),
    ("out_features", []), ("problem_type", 7),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    EupeModel(tiny_config("vit")).save_pretrained(folder)
    return folder


def change(folder: Path, **fields: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | fields))


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_wrong_field_is_one_error_of_every_class(field: str, value: Any, folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    change(folder, **{field: value})
    try:
        for cls in (EupeConfig, EupeModel, EupeForSegmentation, EupeForImageClassification):
            with pytest.raises(ValueError, match=field) as caught:
                cls.from_pretrained(folder)
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
            assert isinstance(caught.value, StrictDataclassError)  # as `@strict` raises
        if field != "auto_map":  # which the Auto classes look into first
            for auto in (AutoConfig, AutoModel, AutoModelForImageClassification):
                with pytest.raises(ValueError, match=field) as caught:
                    auto.from_pretrained(str(folder))
                assert str(folder) in str(caught.value)
    finally:
        (folder / "config.json").write_bytes(before)
    assert EupeModel.from_pretrained(folder).config.hidden_size == 32


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe{}", b'{"model_type": {}}'])
def test_damaged_configuration_is_one_error(content: bytes, folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(content)
    try:
        for cls in (EupeModel, EupeForImageClassification, EupeForMultiTask, EupeLlavaForConditionalGeneration):
            with pytest.raises((ValueError, OSError), match=r"config\.json"):
                cls.from_pretrained(folder)
        with pytest.raises((ValueError, OSError), match="saved"):
            describe(folder)
    finally:
        (folder / "config.json").write_bytes(before)


def test_several_tasks_and_vlms_name_the_field(tmp_path: Path) -> None:
    heads = {"scene": {"task": "classification", "num_labels": 2}}
    config = EupeMultiTaskConfig(encoder_config=tiny_config("vit"), heads=heads)
    EupeForMultiTask(config).save_pretrained(tmp_path / "tasks")
    make_vlm("vit")[0].save_pretrained(tmp_path / "vlm")
    for name, cls, wrong in (
        ("tasks", EupeForMultiTask, [("heads", {"scene": 3}), ("heads", 5), ("heads", {"a": {"task": "x"}})]),
        ("tasks", EupeForMultiTask, [("encoder_config", 5), ("dtype", "x")]),
        ("vlm", EupeLlavaForConditionalGeneration, [("vision_config", 5), ("scale_factor", "x"), ("dtype", 3)]),
        ("vlm", EupeLlavaForConditionalGeneration, [("text_config", 5), ("image_seq_length", "x")]),
    ):
        before = (tmp_path / name / "config.json").read_bytes()
        for field, value in wrong:
            change(tmp_path / name, **{field: value})
            with pytest.raises(ValueError, match=str(tmp_path / name)) as caught:
                cls.from_pretrained(tmp_path / name)
            assert field in str(caught.value)
            (tmp_path / name / "config.json").write_bytes(before)


@pytest.mark.parametrize(
    ("kind", "fields", "wrong"),
    [
        ("eupe_multitask", {}, {"heads": {"a": 3}}),
        ("eupe_multitask", {}, {"heads": {"a": {}}}),
        ("eupe_multitask", {}, {"heads": [1]}),
        ("eupe_llava", {"image_seq_length": 4}, {"text_config": None}),
        ("eupe_llava", {"image_seq_length": 4}, {"text_config": {"model_type": 3}}),
        ("eupe_llava", {"text_config": {"model_type": "llama"}}, {"image_seq_length": "x"}),
    ],
)
def test_info_names_the_field(kind: str, fields: dict[str, Any], wrong: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **fields, **wrong}))
    with pytest.raises(ValueError, match=r"config\.json: '"):
        describe(tmp_path)
