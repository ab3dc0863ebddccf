# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders of the app, and what they see in photographs; without Gradio."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from photographs import Photograph
from PIL import Image

from eupe_hf import EupeBackbone, EupeConfig, EupeForMultiTask, EupeImageProcessor, EupeMultiTaskConfig, variant_config
from eupe_hf.loading import load_encoder, load_processor, load_task_model, pick_device
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.visualization import (
    heat_picture,
    mark_patch,
    pca_rgb,
    prediction_picture,
    rgb_picture,
    similarity_map,
)  # fmt: skip


SIDES = range(128, 1025, 32)  # of the input, in pixels: whole patches of both families
KEPT_SIGHTS = 12  # photographs that each encoder remembers


@dataclass(frozen=True)
class Sight:
    """What an encoder sees in a photograph.

    Args:
        feature_map: (C, H, W), on the CPU: the last one that the model reads.
        milliseconds: Time of the encoder's forward pass, without its heads.
        components: Picture of the principal components.
        predictions: Pictures of what the heads predict, by name.
    """

    feature_map: torch.Tensor
    milliseconds: float
    components: Image.Image
    predictions: dict[str, Image.Image]


class Encoder:
    """An encoder, perhaps with heads, that remembers what it saw lately.

    Args:
        name: The name to show.
        model: `EupeBackbone`, a task model or `EupeForMultiTask`.
        processor: Its image processor.
        random_part: What has random weights, in words; empty if nothing has.
    """

    def __init__(self, name: str, model: Any, processor: Any, random_part: str = ""):
        self.name, self.model, self.processor, self.random_part = name, model.eval(), processor, random_part
        # One pass serves everything: these catch the features, and time the encoder, on their way to the heads.
        self.model.base_model.register_forward_pre_hook(lambda *_: self._start())
        self.model.base_model.register_forward_hook(lambda _, __, output: self._stop(output))
        self.see = lru_cache(KEPT_SIGHTS)(self._see)  # a click needs no second pass
        with torch.inference_mode():  # the first pass takes longer than all others: do not show its time
            self.model(torch.zeros(1, 3, 256, 256, device=model.device))

    @property
    def heads(self) -> dict[str, EupeConfig]:
        """The configuration of each head, by name."""
        if isinstance(self.model, EupeForMultiTask):
            return {name: self.model.config.head_config(name) for name in self.model.heads}
        tasks = [task for task, task_class in TASK_MODELS.items() if isinstance(self.model, task_class)]
        return dict.fromkeys(tasks, self.model.config)

    def _synchronize(self) -> None:
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize()

    def _start(self) -> None:
        self._synchronize()
        self._started = time.perf_counter()

    def _stop(self, output: Any) -> None:
        self._synchronize()
        self._milliseconds = 1000 * (time.perf_counter() - self._started)
        self._feature_map = output.feature_maps[-1][0].float().cpu()

    def _see(self, photograph: Photograph, size: int) -> Sight:
        """Encode a photograph, resized to `size` pixels a side; `see` does the same and remembers."""
        options = {"size": {"height": size, "width": size}, "do_center_crop": False, "return_tensors": "pt"}
        with torch.inference_mode():
            outputs = self.model(**self.processor(photograph.path, **options).to(self.model.device))
        is_multi = isinstance(self.model, EupeForMultiTask)
        by_name = outputs.predictions if is_multi else dict.fromkeys(self.heads, outputs)
        picture = photograph.picture
        predictions = {
            name: prediction_picture(by_name[name], picture, self.processor, config)
            for name, config in self.heads.items()
        }
        components = rgb_picture(pca_rgb(self._feature_map[None])[0], picture.size)
        return Sight(self._feature_map, self._milliseconds, components, predictions)


def whole_patches(size: float) -> int:
    """Round down to a size of `SIDES`; the field beside the slider takes any number."""
    return int(size) // SIDES.step * SIDES.step


def patch_at(point: tuple[float, float], feature_map: torch.Tensor) -> tuple[int, int]:
    """Row and column of the patch at a point (x, y), in shares of the picture's sides."""
    rows, columns = feature_map.shape[1:]
    return min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)


def framed(photograph: Photograph, sight: Sight, point: tuple[float, float]) -> Image.Image:
    """The photograph with a frame around the patch at a point."""
    rows, columns = sight.feature_map.shape[1:]
    return mark_patch(photograph.picture, *patch_at(point, sight.feature_map), (rows, columns))


def similarity(photograph: Photograph, sight: Sight, point: tuple[float, float]) -> tuple[Image.Image, float]:
    """Heat map of the cosine similarity of all patches to the one at a point, and its lowest value."""
    row, column = patch_at(point, sight.feature_map)
    values = similarity_map(sight.feature_map, row, column)
    heat = mark_patch(heat_picture(values, photograph.picture), row, column, (values.shape[0], values.shape[1]))
    return heat, values.min().item()


def load_encoders(
    names: Sequence[str], random_names: Sequence[str], heads: Sequence[str], device: str | None = None
) -> dict[str, Encoder]:
    """Load models by name.

    Args:
        names: Encoders, task models and multi-task models: short names, Hub ids and folders.
        random_names: Short names of encoders to build with random weights.
        heads: Tasks for which encoders without heads get new heads, with random weights.
        device: See `eupe_hf.loading.pick_device`.

    Returns:
        The encoders, by the name to show.

    Raises:
        OSError: A model was not found.
        ValueError: A model is not an EUPE model, or is named twice; or the device is unknown.
    """
    place = pick_device(device)
    torch.manual_seed(0)
    new_heads: dict[str, Any] = {task: {"task": task} for task in heads}
    found: dict[str, Encoder] = {}
    for name in names:
        shown = name if Path(name).name in found else Path(name).name  # two folders may have the same name
        model, part = load_task_model(name, device), ""
        if model is None and new_heads:
            model, part = EupeForMultiTask.from_pretrained(name, heads=new_heads).to(place), "heads"
        model = load_encoder(name, device, EupeBackbone) if model is None else model
        found[shown] = Encoder(shown, model, load_processor(name), part)
    for name in random_names:
        config, shown, part = variant_config(name, layerscale_value=1.0), f"{name} (random)", "encoder"
        if new_heads:
            model, part = (
                EupeForMultiTask(EupeMultiTaskConfig(encoder_config=config, heads=new_heads)),
                "encoder and heads",
            )
        else:
            model = EupeBackbone(config)
        found[shown] = Encoder(shown, model.to(place), EupeImageProcessor(), part)
    if len(found) < len(names) + len(random_names):
        raise ValueError(f"Name each model once, got {', '.join([*names, *random_names])}.")
    return found
