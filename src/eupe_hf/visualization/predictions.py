# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What saved task models say about photographs: as pictures, and as plain values."""

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import ModelOutput

from eupe_hf.loading import _load
from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe_multitask import TASK_MODELS, EupeForMultiTask

from .pictures import class_scores, prediction_picture, rgb_picture, side_by_side


class Predictor:
    """A task model, or a multi-task one, with its image processor.

    Args:
        name: A saved model: a folder or a Hub id; or an encoder, also by short name, with a `task`.
        task: "classification", "segmentation", "depth" or "detection": puts a new head, with random weights, on an
            encoder that has none.
        size: Squash to this side in pixels; by default as the model was saved.
        threshold: Detection: least score of a box.

    Attributes:
        is_random: Whether the head is new: then predictions mean nothing.

    Raises:
        OSError: The model is not to be had.
        ValueError: It is none of EUPE, or an encoder without `task`.
    """

    def __init__(self, name: str, task: str | None = None, size: int | None = None, threshold: float = 0.5):
        self.model, self.is_random = _load(name, task)
        self.model.eval()
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.size = {} if size is None else {"size": {"height": size, "width": size}}
        self.threshold = threshold
        self.name = Path(name).name

    def __call__(self, image: str | os.PathLike | Image.Image) -> dict[str, "Prediction"]:
        """Predict for one image: an entry per head, by name; of a single-task model one under its task's name.

        Raises:
            ValueError: The image can't be read.
        """
        inputs = self.processor(image, **self.size, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        # the photograph as the processor reads it, in its own size: upright, also where it has 16 bits
        raw = self.processor(image, do_resize=False, do_center_crop=False, do_normalize=False, return_tensors="pt")
        pixels = raw["pixel_values"][0].permute(1, 2, 0)
        photograph = rgb_picture(pixels, (pixels.shape[1], pixels.shape[0]))
        parts: dict[str, tuple[ModelOutput, EupeConfig]]
        if isinstance(self.model, EupeForMultiTask):
            parts = {name: (out, self.model.config.head_config(name)) for name, out in outputs.predictions.items()}
        else:
            task = next(task for task, known in TASK_MODELS.items() if isinstance(self.model, known))
            parts = {task: (outputs, self.model.config)}
        return {
            name: Prediction(output, photograph, self.processor, config, self.threshold)
            for name, (output, config) in parts.items()
        }

    def save_pictures(self, path: str | os.PathLike, folder: str | os.PathLike) -> list[Path]:
        """Predict for one image file, and draw each head's result beside the photograph.

        Args:
            path: The image.
            folder: Gets the pictures, PNG files of the image's name; with several heads the head's is added.

        Returns:
            The pictures. Where weights are random, they say so.

        Raises:
            ValueError: The image can't be read.
        """
        predictions = self(path)
        Path(folder).mkdir(parents=True, exist_ok=True)
        saved = []
        for name, prediction in predictions.items():
            head = name if len(predictions) > 1 else ""
            caption = f"{'random weights: ' * self.is_random}{self.name} {head}".strip()
            target = Path(folder) / f"{Path(path).stem}{'-' * bool(head)}{head}.png"
            side_by_side([prediction.photograph, prediction.picture()], caption).save(target)
            saved.append(target)
        return saved


class Prediction:
    """What one head says about one photograph.

    Attributes:
        outputs: Of the head.
        photograph: Upright, in its own size.
    """

    def __init__(
        self, outputs: ModelOutput, photograph: Image.Image, processor: Any, config: EupeConfig, threshold: float
    ):
        self.outputs, self.photograph = outputs, photograph
        self.processor, self.config, self.threshold = processor, config, threshold

    def picture(self) -> Image.Image:
        """Label map, depth map, boxes or classes, drawn in the size of the photograph."""
        return prediction_picture(self.outputs, self.photograph, self.processor, self.config, self.threshold)

    def values(self) -> dict[str, Any]:
        """The same in numbers, ready for JSON.

        Returns:
            Of classes `scores` by name, the best five; of a label map `shares` of the image by name; of depth
            `least`, `median` and `most`, in metres; of boxes `boxes`, each with `label`, `score` and `box` (left,
            top, right, bottom, in pixels of the photograph).
        """
        outputs, processor, names = self.outputs, self.processor, self.config.id2label
        size = [(self.photograph.height, self.photograph.width)]
        if "predicted_depth" in outputs:
            (found,) = processor.post_process_depth_estimation(outputs, target_sizes=size)
            depth = found["predicted_depth"].float()
            return {"least": depth.min().item(), "median": depth.median().item(), "most": depth.max().item()}
        if "pred_boxes" in outputs:
            (found,) = processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=size)
            rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
            return {"boxes": [{"label": names[i], "score": score, "box": box} for i, score, box in rows]}
        if outputs["logits"].ndim == 4:
            (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=size)
            counts = label_map.flatten().bincount().tolist()
            shares = {names[i]: count / label_map.numel() for i, count in enumerate(counts) if count}
            return {"shares": dict(sorted(shares.items(), key=lambda entry: -entry[1]))}
        return {"scores": class_scores(outputs["logits"][0], self.config)}
