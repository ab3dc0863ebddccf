# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What task models predict for photographs, as pictures and as plain values."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import ModelOutput

from eupe_hf.data.rows import UnreadableError
from eupe_hf.features.extraction import ImageReader
from eupe_hf.loading import load_processor, load_task_model, pick_device
from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe_multitask import EupeForMultiTask
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.models.post_processing_eupe import EupePostProcessingMixin
from eupe_hf.staging import check_outputs, output_names

from . import pictures


def class_scores(logits: torch.Tensor, config: EupeConfig, count: int = 5) -> dict[str, float]:
    """The best `count` classes of one image by name, from logits (classes,), the best first.

    Returns:
        Probabilities; for a regression, or a single class, the raw values.
    """
    logits = logits.detach().float().cpu()
    if config.problem_type == "multi_label_classification":
        logits = logits.sigmoid()
    elif config.problem_type != "regression" and config.num_labels > 1:
        logits = logits.softmax(dim=0)
    scores, classes = logits.sort(descending=True)
    best = zip(classes.tolist()[:count], scores.tolist()[:count], strict=True)
    return {config.id2label[i]: score for i, score in best}


def _post_process(
    outputs: ModelOutput, image: Image.Image, processor: EupePostProcessingMixin, threshold: float
) -> tuple[str, Any]:
    """The kind of an output ("depth", "boxes", "segments" or "scores"), and its value for an image of this size."""
    size = [(image.height, image.width)]
    if "predicted_depth" in outputs:
        (found,) = processor.post_process_depth_estimation(outputs, target_sizes=size)
        return "depth", found["predicted_depth"].float()
    if "pred_boxes" in outputs:
        (found,) = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=size)
        return "boxes", found
    if outputs["logits"].ndim == 4:
        return "segments", processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0]
    return "scores", outputs["logits"][0]


def prediction_picture(
    outputs: ModelOutput,
    image: Image.Image,
    processor: EupePostProcessingMixin,
    config: EupeConfig,
    threshold: float = 0.5,
) -> Image.Image:
    """Draw the prediction of a task model for one image: classes, label map, depth map or boxes.

    Args:
        outputs: Of a task model for one image, or an entry of the `predictions` of `EupeForMultiTask`.
        image: The image, in its own size.
        processor: The image processor, for its `post_process_*`.
        config: Of the task model, for the names of the classes.
        threshold: Lowest score of a box to draw.

    Raises:
        ValueError: The outputs are of several images, or not of a task model.
    """
    main = outputs.get("predicted_depth", outputs.get("logits"))
    if main is None or len(main) != 1:
        raise ValueError("prediction_picture draws the output of a task model for one image at a time.")
    kind, found = _post_process(outputs, image, processor, threshold)
    if kind == "depth":
        return pictures.depth_picture(found, image.size)
    if kind == "boxes":
        return pictures.boxes_picture(image, found, config.id2label)
    if kind == "segments":
        return pictures.segmentation_picture(found, image, config.id2label)
    ids, scores = {name: i for i, name in config.id2label.items()}, class_scores(found, config).items()
    legend = [(pictures.class_colour(ids[name]), f"{name} {score:.2f}") for name, score in scores]
    return pictures.with_legend(image.convert("RGB"), legend)


@dataclass
class Prediction:
    """The `outputs` of one head for one `photograph`, which is upright and in its own size."""

    outputs: ModelOutput
    photograph: Image.Image
    processor: Any
    config: EupeConfig
    threshold: float

    def picture(self) -> Image.Image:
        """Label map, depth map, boxes or classes, drawn in the size of the photograph."""
        return prediction_picture(self.outputs, self.photograph, self.processor, self.config, self.threshold)

    def values(self) -> dict[str, Any]:
        """The prediction in numbers, ready for JSON.

        Returns:
            Of classes `scores` by name, the best five; of a label map `shares` of the image by name; of depth `least`,
            `median` and `most` in metres; of boxes `boxes`, each with `label`, `score` and `box` (left, top, right,
            bottom, in pixels of the photograph).
        """
        names = self.config.id2label
        kind, found = _post_process(self.outputs, self.photograph, self.processor, self.threshold)
        if kind == "depth":
            return {"least": found.min().item(), "median": found.median().item(), "most": found.max().item()}
        if kind == "boxes":
            rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
            return {"boxes": [{"label": names[i], "score": score, "box": box} for i, score, box in rows]}
        if kind == "segments":
            shares = {names[i]: n / found.numel() for i, n in enumerate(found.flatten().bincount().tolist()) if n}
            return {"shares": dict(sorted(shares.items(), key=lambda entry: -entry[1]))}
        return {"scores": class_scores(found, self.config)}


class Predictor:
    """A task model or multi-task model with its image processor.

    Args:
        name: A saved model or adapter: a folder or a Hub id; or an encoder, also by short name, with a `task`.
        task: "classification", "segmentation", "depth" or "detection": puts a new head with random weights on an
            encoder without a head.
        size: Resize images to this height and width in pixels; by default as the model was saved.
        threshold: Detection: lowest score of a box.
        device: See `eupe_hf.loading.pick_device`.

    Attributes:
        is_random: Whether the head is new, so that predictions are meaningless.

    Raises:
        OSError: The model was not found.
        ValueError: It is not an EUPE model, or an encoder without a head and without `task`; or the device is unknown.
    """

    def __init__(
        self,
        name: str,
        task: str | None = None,
        size: int | None = None,
        threshold: float = 0.5,
        device: str | torch.device | None = None,
    ):
        model = load_task_model(name, device)
        self.is_random = model is None
        self.model = _with_new_head(name, task).to(pick_device(device)) if model is None else model
        self.processor, self.threshold, self.name = load_processor(name, size), threshold, Path(name).name
        self.reader = ImageReader(self.processor)

    def __call__(self, image: str | os.PathLike | Image.Image) -> dict[str, Prediction]:
        """Predict for one image: an entry per head by name; for a single-task model one under the name of its task.

        Raises:
            UnreadableError: The image can't be read.
        """
        pixel_values = self.reader.read(image).to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(pixel_values)
        photograph = pictures.read_photograph(image, self.processor, resize=False)
        parts: dict[str, tuple[ModelOutput, EupeConfig]]
        if isinstance(self.model, EupeForMultiTask):
            parts = {name: (out, self.model.config.head_config(name)) for name, out in outputs.predictions.items()}
        else:
            parts = {self.heads[0]: (outputs, self.model.config)}
        return {
            name: Prediction(output, photograph, self.processor, config, self.threshold)
            for name, (output, config) in parts.items()
        }

    @property
    def heads(self) -> list[str]:
        """Names of the heads: one for a single-task model, the name of its task."""
        if isinstance(self.model, EupeForMultiTask):
            return list(self.model.heads)
        return [next(task for task, known in TASK_MODELS.items() if isinstance(self.model, known))]

    def values(self, paths: Sequence[str | os.PathLike]) -> Iterator[dict[str, Any] | UnreadableError]:
        """Predict for image files: for each `path`, `is_random`, and each head's `Prediction.values`, or the error."""
        return map(self._values, paths)

    def _values(self, path: str | os.PathLike) -> dict[str, Any] | UnreadableError:
        try:
            found = {name: prediction.values() for name, prediction in self(path).items()}
        except UnreadableError as error:
            return error
        return {"path": str(path), "is_random": self.is_random, **found}

    def save_pictures(
        self,
        paths: Sequence[str | os.PathLike],
        folder: str | os.PathLike,
        sources: Sequence[str | os.PathLike] = (),
        overwrite: bool = False,
    ) -> Iterator[list[Path] | UnreadableError]:
        """Predict for image files, and draw each head's prediction beside the photograph, as PNG files in a folder.

        Files are named after the image by `output_names`, and after the head where there are several. A caption says
        if weights are random.

        Args:
            paths: The images.
            folder: The folder of the pictures.
            sources: The files and folders in which `paths` were found.
            overwrite: Replace pictures that exist.

        Yields:
            For each image the pictures, or why it can't be read.

        Raises:
            FileExistsError: A picture exists. Nothing was drawn then.
            ValueError: A picture would replace one of the images. Nothing was drawn then.
        """
        heads = self.heads
        names = output_names(paths, sources, [f"-{head}.png" for head in heads] if len(heads) > 1 else [".png"])
        files = [[Path(folder) / name for name in group] for group in names]
        check_outputs([file for group in files for file in group], paths, overwrite)
        for path, group in zip(paths, files, strict=True):
            try:
                predictions = self(path)
            except UnreadableError as error:
                yield error
                continue
            for head, file in zip(heads, group, strict=True):
                caption = f"{'random weights: ' * self.is_random}{self.name} {head * (len(heads) > 1)}".strip()
                drawn = pictures.side_by_side([predictions[head].photograph, predictions[head].picture()], caption)
                pictures.save_picture(drawn, file)
            yield group


def _with_new_head(name: str, task: str | None) -> Any:
    if task is None:
        raise ValueError(f"{name} is an encoder without a head: choose a head to put on it, with --task.")
    if task not in TASK_MODELS:
        raise ValueError(f"The task must be one of {', '.join(TASK_MODELS)}, got {task!r}.")
    torch.manual_seed(0)
    return TASK_MODELS[task].from_pretrained(name).eval()
