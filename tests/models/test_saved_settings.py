# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What training learns of its labels is saved, so that pipelines use it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_config
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from eupe_hf import EupeForImageClassification, EupeForMultiTask, EupeMultiTaskConfig
from eupe_hf.visualization.predictions import class_scores


LABELS = {
    "single_label_classification": (3, torch.tensor([0, 2])),
    "multi_label_classification": (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])),
    "regression": (1, torch.tensor([7.2, 3.1])),
}


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(family: str, count: int, labels: torch.Tensor, **fields: Any) -> EupeForImageClassification:
    torch.manual_seed(0)
    model = EupeForImageClassification(tiny_config(family, num_labels=count, **fields))
    model(pixels(), labels=labels).loss.backward()
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("problem", LABELS)
def test_problem_type_is_inferred_saved_and_used_by_the_pipeline(family: str, problem: str, tmp_path: Path) -> None:
    count, labels = LABELS[problem]
    model = trained(family, count, labels).eval()
    with torch.no_grad():
        model.head.classifier.bias += 7.2
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == problem
    image = Image.new("RGB", (32, 32), "red")
    found = {entry["label"]: entry["score"] for entry in pipeline("image-classification", model=str(tmp_path))(image)}
    processor = pipeline("image-classification", model=str(tmp_path)).image_processor
    with torch.inference_mode():
        logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0]
    expected = {
        "single_label_classification": logits.softmax(0),
        "multi_label_classification": logits.sigmoid(),
        "regression": logits,
    }[problem]
    names = model.config.id2label
    assert found == pytest.approx({names[i]: float(score) for i, score in enumerate(expected)}, abs=1e-5)
    assert class_scores(logits, model.config) == pytest.approx(found, abs=1e-5)
    if problem == "regression":
        assert min(found.values()) > 1.5


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16])
def test_zeros_and_ones_per_class_are_several_labels_of_any_type(dtype: torch.dtype) -> None:
    count, labels = LABELS["multi_label_classification"]
    expected = trained("vit", count, labels)(pixels(), labels=labels).loss
    model = trained("vit", count, labels.to(dtype))
    assert model.config.problem_type == "multi_label_classification"
    assert torch.equal(model(pixels(), labels=labels.to(dtype)).loss, expected)


def test_a_problem_type_that_was_set_stays_and_wrong_labels_set_none() -> None:
    model = trained("vit", 3, torch.rand(2, 3), problem_type="regression")
    assert model.config.problem_type == "regression"
    model = EupeForImageClassification(tiny_config("vit", num_labels=3))
    for labels, message in (
        (torch.tensor([1, 3]), "They count from 1: subtract 1"),
        (torch.tensor([1.0, 2.0]), r"labels for multi_label_classification must be \(2, 3\)"),
        (torch.tensor([[0.0, 100.0, 40.0]] * 2), "go from 0 to 100. They look like percent: divide by 100"),
        (torch.tensor([[0, 1, 2]] * 2), "zeros and ones, or probabilities; they go from 0 to 2"),
        (torch.tensor([[0.0, float("nan"), 1.0]] * 2), "they go from nan to nan"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixels(), labels=labels)
        assert model.config.problem_type is None


def test_problem_type_of_a_head_among_several_is_saved(tmp_path: Path) -> None:
    heads = {name: {"task": "classification", "num_labels": LABELS[name][0]} for name in LABELS}
    model = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config("vit"), heads=heads))
    model(pixels(), labels={name: labels for name, (_, labels) in LABELS.items()})
    model.save_pretrained(tmp_path / "all")
    again = EupeForMultiTask.from_pretrained(tmp_path / "all")
    for name in LABELS:
        assert again.config.head_config(name).problem_type == name
        again.task_model(name).save_pretrained(tmp_path / name)
        assert AutoConfig.from_pretrained(tmp_path / name).problem_type == name
        again.save_head(name, tmp_path / f"head-{name}")
        assert AutoConfig.from_pretrained(tmp_path / f"head-{name}").problem_type == name


def test_problem_type_is_saved_with_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from eupe_hf.lora import lora_config

    count, labels = LABELS["multi_label_classification"]
    base = EupeForImageClassification(tiny_config("vit", num_labels=count))
    base.save_pretrained(tmp_path / "base")
    base = EupeForImageClassification.from_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(base, lora_config(base, r=2))
    wrapped(pixels(), labels=labels).loss.backward()
    wrapped.save_pretrained(tmp_path / "adapter")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")
    assert again.config.problem_type == "multi_label_classification"


def test_compiled_training_infers_it_too() -> None:
    model = EupeForImageClassification(tiny_config("convnext", num_labels=3))
    labels = LABELS["multi_label_classification"][1]
    torch.compile(model, fullgraph=True, backend="eager")(pixels(), labels=labels).loss.backward()
    assert model.config.problem_type == "multi_label_classification"
