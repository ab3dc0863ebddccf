# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the app needs of photographs and encoders; nothing here knows of Gradio."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from eupe_hf import (
    EupeBackbone,
    EupeConfig,
    EupeForMultiTask,
    EupeImageProcessor,
    EupeMultiTaskConfig,
    variant_config,
)
from eupe_hf.loading import load_task_model
from eupe_hf.models.modeling_eupe_multitask import TASK_MODELS
from eupe_hf.visualization import heat_picture, mark_patch, pca_rgb, prediction_picture, rgb_picture, similarity_map


SIDES = range(128, 1025, 32)  # of the input, in pixels: whole patches of both families
MAX_MEGAPIXELS = 64
SHOWN_SIDE = 512  # the longer side of what the app shows, in pixels
KEPT_SIGHTS = 12  # of each encoder: what it saw lately


@dataclass(frozen=True)
class Photograph:
    """A photograph, equal to others of the same content.

    Args:
        digest: Of the file.
        path: The file.
        picture: What the app shows: upright, 8 bits, in its proportions.
    """

    digest: str
    path: Path = field(compare=False)
    picture: Image.Image = field(compare=False)


@dataclass(frozen=True)
class Sight:
    """What an encoder sees in a photograph.

    Args:
        feature_map: (C, H, W), on the CPU: the last one that the model reads.
        milliseconds: Of the encoder's forward pass, without its heads.
        components: Picture of the principal components.
        predictions: Pictures of what the heads say, by name.
    """

    feature_map: torch.Tensor
    milliseconds: float
    components: Image.Image
    predictions: dict[str, Image.Image]


def open_photograph(path: Path) -> Photograph:
    """Read a photograph as the image processor does: EXIF rotation undone, alpha dropped, 16 bits kept.

    Raises:
        ValueError: The file can't be read, or has too many pixels.
    """
    pixels = _pixels(path)
    height, width = pixels.shape[1:]
    scale = SHOWN_SIDE / max(height, width)
    # a panorama one pixel high is shown as a stripe that can be clicked
    width, height = max(round(width * scale), 32), max(round(height * scale), 32)
    size = {"height": height, "width": width}
    (shown,) = EupeImageProcessor(size=size)(pixels, do_normalize=False, return_tensors="pt")["pixel_values"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Photograph(digest, path, rgb_picture(shown.permute(1, 2, 0), (width, height)))


def _pixels(path: Path) -> torch.Tensor:
    try:
        with Image.open(path) as file:
            is_small_enough = file.width * file.height <= MAX_MEGAPIXELS * 1_000_000
        if is_small_enough:
            return EupeImageProcessor().process_image(path)
    except Image.DecompressionBombError:  # Pillow's own limit
        pass
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path.name} can't be read: it is damaged or no image. Choose an intact JPEG, PNG or WebP file."
        ) from error
    raise ValueError(f"{path.name} has more than {MAX_MEGAPIXELS} million pixels: choose a smaller image.")


class Encoder:
    """An encoder, perhaps with heads, and what it saw lately.

    Args:
        name: To show.
        model: `EupeBackbone`, a task model or `EupeForMultiTask`.
        processor: Its image processor.
        random_part: What has random weights, in words; empty if nothing.
    """

    def __init__(self, name: str, model: Any, processor: Any, random_part: str = ""):
        has_accelerator = torch.accelerator.is_available()
        self.device = torch.accelerator.current_accelerator() if has_accelerator else torch.device("cpu")
        self.name, self.processor, self.random_part = name, processor, random_part
        self.model = model.eval().to(self.device)
        # One pass serves everything: the features are caught, and the encoder timed, on their way to the heads.
        self.model.base_model.register_forward_pre_hook(lambda *_: self._start())
        self.model.base_model.register_forward_hook(lambda _, __, output: self._stop(output))
        self.see = lru_cache(KEPT_SIGHTS)(self._see)  # a click needs no second pass
        with torch.inference_mode():  # the first pass takes longer than all others, which would be the time shown
            self.model(torch.zeros(1, 3, 256, 256, device=self.device))

    @property
    def heads(self) -> dict[str, EupeConfig]:
        """What each head reads, by name."""
        if isinstance(self.model, EupeForMultiTask):
            return {name: self.model.config.head_config(name) for name in self.model.heads}
        tasks = [task for task, task_class in TASK_MODELS.items() if isinstance(self.model, task_class)]
        return dict.fromkeys(tasks, self.model.config)

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _start(self) -> None:
        self._synchronize()
        self._started = time.perf_counter()

    def _stop(self, output: Any) -> None:
        self._synchronize()
        self._milliseconds = 1000 * (time.perf_counter() - self._started)
        self._feature_map = output.feature_maps[-1][0].float().cpu()

    def _see(self, photograph: Photograph, size: int) -> Sight:
        """Encode a photograph, squashed to `size` pixels a side. `see` is the same, and remembers."""
        inputs = self.processor(
            photograph.path, size={"height": size, "width": size}, do_center_crop=False, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        picture = photograph.picture
        by_name = (
            outputs.predictions if isinstance(self.model, EupeForMultiTask) else dict.fromkeys(self.heads, outputs)
        )
        predictions = {
            name: prediction_picture(by_name[name], picture, self.processor, config)
            for name, config in self.heads.items()
        }
        components = rgb_picture(pca_rgb(self._feature_map[None])[0], picture.size)
        return Sight(self._feature_map, self._milliseconds, components, predictions)


def whole_patches(size: float) -> int:
    """The size of `SIDES` that is next below; any number can be typed beside the slider."""
    return int(size) // SIDES.step * SIDES.step


def patch_at(point: tuple[float, float], feature_map: torch.Tensor) -> tuple[int, int]:
    """Row and column of the patch at a point, which is (x, y) in shares of the picture's sides."""
    rows, columns = feature_map.shape[1:]
    return min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)


def framed(photograph: Photograph, sight: Sight, point: tuple[float, float]) -> Image.Image:
    """The photograph with the patch at a point framed."""
    rows, columns = sight.feature_map.shape[1:]
    return mark_patch(photograph.picture, *patch_at(point, sight.feature_map), (rows, columns))


def similarity(photograph: Photograph, sight: Sight, point: tuple[float, float]) -> tuple[Image.Image, float]:
    """Heat map of the cosine similarity of all patches to the one at a point, and the lowest value in it."""
    row, column = patch_at(point, sight.feature_map)
    values = similarity_map(sight.feature_map, row, column)
    heat = mark_patch(heat_picture(values, photograph.picture), row, column, (values.shape[0], values.shape[1]))
    return heat, values.min().item()


def load_encoders(names: Sequence[str], random_names: Sequence[str], heads: Sequence[str]) -> dict[str, Encoder]:
    """Load models by name.

    Args:
        names: Encoders, task models and multi-task models: short names, Hub ids and folders.
        random_names: Of the six, to be built with random weights.
        heads: Tasks of which encoders without heads get new heads, with random weights.

    Returns:
        The encoders by the name to show.

    Raises:
        OSError: One is not to be had.
        ValueError: It is none of EUPE, or named twice.
    """
    torch.manual_seed(0)
    new_heads = {task: {"task": task} for task in heads}
    found: dict[str, Encoder] = {}
    for name in names:
        shown = Path(name).name
        shown = name if shown in found else shown  # two folders of one name
        model, has_new_heads = _load(name, new_heads)
        part = "heads" if has_new_heads else ""
        found[shown] = Encoder(shown, model, AutoImageProcessor.from_pretrained(name), part)
    for name in random_names:
        config = variant_config(name, layerscale_value=1.0)
        if new_heads:
            model = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=config, heads=new_heads))
        else:
            model = EupeBackbone(config)
        shown = f"{name} (random)"
        found[shown] = Encoder(shown, model, EupeImageProcessor(), "encoder and heads" if new_heads else "encoder")
    if len(found) < len(names) + len(random_names):
        raise ValueError(f"Name each model once, got {', '.join([*names, *random_names])}.")
    return found


def _load(name: str, new_heads: dict[str, Any]) -> tuple[Any, bool]:
    """The model, and whether its heads are new."""
    model = load_task_model(name)
    if model is not None:
        return model, False
    if new_heads:
        return EupeForMultiTask.from_pretrained(name, heads=new_heads), True
    return EupeBackbone.from_pretrained(name), False
