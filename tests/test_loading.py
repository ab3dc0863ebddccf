# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading by name, folder or adapter; devices, and that inputs follow the model to its device."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from eupe_hf import (
    EupeBackbone,
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeImageProcessorPil,
    EupeModel,
    evaluation,
    loading,
)
from eupe_hf.features import ImageReader, encode_images, tiled_feature_map
from eupe_hf.loading import load_encoder, load_processor, load_task_model, pick_device
from eupe_hf.visualization import encoders, predictions


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, its image processor, a depth model and a multi-task model."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    EupeModel(tiny_config("vit", layerscale_value=0.5)).save_pretrained(folder / "encoder")
    EupeImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=True, crop_size=64).save_pretrained(
        folder / "encoder"
    )
    EupeForDepthEstimation(tiny_config("convnext")).save_pretrained(folder / "depth")
    heads = {"far": {"task": "depth"}}
    EupeForMultiTask.from_pretrained(folder / "encoder", heads=heads).save_pretrained(folder / "multi")
    return folder


# ---- devices ----


def test_pick_device_takes_the_accelerator_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu") == pick_device(torch.device("cpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert pick_device() == torch.device("xpu")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^The device 'abacus' is not available .*: choose cpu or xpu\.$"):
        pick_device("abacus")


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta", ""])
def test_unknown_device_is_one_sentence(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    sentence = f"^The device '{device}' is not available on this machine: choose cpu\\.$"
    with pytest.raises(ValueError, match=sentence):
        pick_device(device)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run a call whose model is on the meta device, and assert that its inputs were moved there."""
    meta = torch.device("meta")
    monkeypatch.setattr(loading, "pick_device", lambda device=None: meta)
    monkeypatch.setattr(predictions, "pick_device", lambda device=None: meta)
    places: set[str] = set()

    def note(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, nn.Conv2d):  # of which the first gets the pixels
            places.add(inputs[0].device.type)

    handle = register_module_forward_pre_hook(note)

    def check(call: Callable[..., Any]) -> None:
        places.clear()
        # results come back to the CPU, which those of the meta device cannot: their data do not exist
        with pytest.raises((NotImplementedError, RuntimeError), match=r"[mM]eta tensor|Tensor\.item"):
            call()
        assert places == {"meta"}

    yield check
    handle.remove()


def test_inputs_follow_loaded_models_to_their_device(
    models: Path, tmp_path: Path, on_meta: Callable[..., None]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photo)
    encoder, processor = load_encoder(str(models / "encoder")), load_processor(str(models / "encoder"))
    assert encoder.device.type == "meta"
    on_meta(lambda: encode_images(encoder, ImageReader(processor)[[str(photo)]]))
    for kind in ("pca", "attention"):
        options = {"kind": kind, "model": str(models / "encoder"), "size": 64}
        on_meta(lambda options=options: list(encoders.draw([photo], tmp_path, **options)))
    for name, task in (("depth", None), ("multi", None), ("encoder", "segmentation")):
        predictor = predictions.Predictor(str(models / name), task, size=64)
        assert predictor.model.device.type == "meta"
        on_meta(lambda predictor=predictor: [one.values() for one in predictor(photo).values()])


def test_inputs_follow_models_of_evaluation_to_their_device(on_meta: Callable[..., None]) -> None:
    processor, image = EupeImageProcessorPil(), Image.effect_noise((70, 64), 60).convert("RGB")
    model = EupeModel(tiny_config("vit")).eval().to("meta")
    on_meta(lambda: evaluation.extract_features(model, processor, [(image, 0)], size=32))
    segmenter = EupeForSegmentation(tiny_config("vit", num_labels=3)).eval().to("meta")
    on_meta(lambda: evaluation.predict_label_map(segmenter, processor, image, 64, sliding_window=True))
    on_meta(lambda: evaluation.predict_label_map(segmenter, processor, image, 64, sliding_window=False))
    depth = EupeForDepthEstimation(tiny_config("convnext")).eval().to("meta")
    on_meta(lambda: evaluation.predict_depth(depth, processor, image).cpu())
    backbone = EupeBackbone(tiny_config("vit")).eval().to("meta")
    on_meta(lambda: evaluation.predict_keypoints(backbone, processor, image, image, torch.zeros(1, 2), 64))
    on_meta(lambda: tiled_feature_map(backbone, torch.zeros(1, 3, 64, 64, device="meta"), tile=32).cpu())


# ---- loading ----


def test_models_are_loaded_in_eval_mode(models: Path) -> None:
    for model_class in (EupeModel, EupeBackbone):
        model = load_encoder(str(models / "encoder"), "cpu", model_class)
        assert type(model) is model_class and not model.training and model.device.type == "cpu"
    assert type(load_task_model(str(models / "depth"), "cpu")) is EupeForDepthEstimation
    multi = load_task_model(str(models / "multi"), "cpu")
    assert type(multi) is EupeForMultiTask and not multi.training
    assert load_task_model(str(models / "encoder"), "cpu") is None


def test_processor_keeps_its_size_unless_one_is_given(models: Path) -> None:
    processor = load_processor(str(models / "encoder"))
    assert (processor.size["height"], processor.do_center_crop) == (64, True)
    processor = load_processor(str(models / "encoder"), size=96)
    assert dict(processor.size) == {"height": 96, "width": 96} and not processor.do_center_crop


def test_adapters_are_loaded(models: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from eupe_hf.lora import lora_config

    image = torch.randn(1, 3, 32, 32)
    for model_class, options in ((EupeModel, {}), (EupeForImageClassification, {"num_labels": 2})):
        torch.manual_seed(1)
        model = model_class.from_pretrained(models / "encoder", **options)
        adapted = peft.get_peft_model(model, lora_config(model)).eval()
        for parameter in (parameter for parameter in adapted.parameters() if parameter.requires_grad):
            nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / model_class.__name__
        adapted.save_pretrained(folder)
        with torch.inference_mode():
            if model_class is EupeModel:
                found, expected = load_encoder(str(folder), "cpu")(image)[1], adapted(image)[1]
                with pytest.raises(ValueError, match="is an adapter of EupeModel, which is not a task model"):
                    load_task_model(str(folder))
            else:
                found, expected = load_task_model(str(folder), "cpu")(image).logits, adapted(image).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_not_there_or_not_eupe_is_refused(tmp_path: Path) -> None:
    for load in (load_encoder, load_processor, load_task_model):
        with pytest.raises(ValueError, match="Did you mean 'eupe-"):
            load("eupe-q")
        with pytest.raises(FileNotFoundError, match="There is no model at"):
            load(str(tmp_path / "not" / "there"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    for load in (load_encoder, load_task_model):
        with pytest.raises(ValueError, match="is a model of type 'vit', not an EUPE model"):
            load(str(tmp_path))
