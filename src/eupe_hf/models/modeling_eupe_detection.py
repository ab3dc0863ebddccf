# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Object detection: a small anchor-free head on a feature pyramid over an EUPE encoder.

Every position of every level predicts one box and a score per class. Two assignments train it, as in YOLOv10 (arXiv
2405.14458). Each object teaches its class and its box to the ten positions that fit it best, by the alignment of TOOD
(arXiv 2108.07755), and a selection score to only the best one (the positive sample selector of arXiv 2101.11782),
which keeps an object from being found many times. So the graph needs no non-maximum suppression and exports.

tests/benchmarks/README.md of the package's repository compares it with the decoders of transformers.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import ModelOutput

from .configuration_eupe import EupeConfig
from .modeling_eupe_detection_loss import assign, generalized_overlap, overlap, read_detection_labels
from .modeling_eupe_head import EupeTaskModel, Stages
from .modeling_eupe_pyramid import EupeFeaturePyramid, count_read


Labels = Sequence[Mapping[str, torch.Tensor] | None]

_POSITIVES = 10  # positions per object that learn its class and box
_PRIOR = 0.01  # score of every class before training: almost all positions are background
_BOX_WEIGHT = 2.0  # of the box loss, beside the two class losses
_GROUPS = 8  # of the group norms


@dataclass
class EupeObjectDetectionOutput(ModelOutput):
    """Output of `EupeForObjectDetection`, by the names of transformers' detectors.

    Args:
        loss: With labels: the sum of `loss_dict`.
        loss_dict: With labels: `loss_class`, `loss_box` and `loss_select`, weighted.
        logits: (B, N, num_labels), a score per position and class before the sigmoid.
        pred_boxes: (B, N, 4) float32, centre x, centre y, width and height, as shares of the image's sides.
        hidden_states: On request, as in `EupeModel`.
        attentions: On request, as in `EupeModel`.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EupeDetectionHead(nn.Module):
    """Boxes and scores at each position of a feature pyramid, and their loss.

    The pyramid reads the stages in `config.out_indices`. Its levels share the layers that follow.
    """

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.config = config
        width = config.detection_hidden_size
        self.strides = detection_strides(config)
        self.pyramid = EupeFeaturePyramid(config.out_channels, config.out_strides, self.strides, width)
        self.class_tower = _tower(width)
        self.box_tower = _tower(width)
        self.classify = nn.Conv2d(width, config.num_labels, kernel_size=3, padding=1)
        self.select = nn.Conv2d(2 * width, 1, kernel_size=3, padding=1)
        self.locate = nn.Conv2d(width, 4, kernel_size=3, padding=1)

    @torch.no_grad()
    def init_head_weights(self) -> None:
        """Nearly equal predictions everywhere: low scores, boxes of four strides, no preference among positions."""
        for layer in (self.classify, self.select, self.locate):
            init.normal_(layer.weight, std=0.01)
            init.zeros_(layer.bias)
        init.constant_(self.classify.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(
        self, feature_maps: Stages, cls_tokens: Stages, image_size: tuple[int, int], labels: Labels | None = None
    ) -> EupeObjectDetectionOutput:
        """Feature maps to `logits` and `pred_boxes`, and their loss.

        Boxes are shares of the whole image, `image_size` (H, W) in pixels, although maps cover only whole patches from
        the top left corner.
        """
        class_logits, selection, corners, points = self.predict(feature_maps, image_size)
        # the selection learns from the classes, but does not disturb what they learn from ten positions per object
        logits = class_logits.detach() + selection if labels is not None else class_logits + selection
        loss, loss_dict = None, None
        if labels is not None:
            loss_dict = self.loss(class_logits, logits, corners, points, labels)
            loss = torch.stack(list(loss_dict.values())).sum()
        boxes = corners_to_center_format(corners.clamp(0, 1))
        return EupeObjectDetectionOutput(loss=loss, loss_dict=loss_dict, logits=logits, pred_boxes=boxes)

    def predict(self, feature_maps: Stages, image_size: tuple[int, int]) -> Stages:
        """Predictions of the N positions, fine levels first, rows from the top.

        Class logits (B, N, num_labels), selection (B, N, 1), boxes (B, N, 4) as left, top, right, bottom and positions
        (N, 2) as x, y; boxes and positions are float32 shares of the image's sides, boxes not clipped.
        """
        height, width = image_size
        levels = []
        for feature_map, stride in zip(self.pyramid(feature_maps), self.strides, strict=True):
            for_class, for_box = self.class_tower(feature_map), self.box_tower(feature_map)
            selection = self.select(torch.cat((for_class, for_box), dim=1).detach())
            rows, columns = (
                (torch.arange(side, device=feature_map.device, dtype=torch.float32) + 0.5) * stride
                for side in feature_map.shape[2:]
            )
            x, y = (axis.flatten() for axis in torch.meshgrid(columns, rows, indexing="xy"))
            # from the position to the four sides, in pixels; the clamp keeps the exponential finite
            reach = 2 * stride * self.locate(for_box).flatten(2).float().clamp(-8, 8).exp()  # (B, 4, h * w)
            left, top, right, bottom = reach.unbind(dim=1)
            corners = ((x - left) / width, (y - top) / height, (x + right) / width, (y + bottom) / height)
            levels.append((
                self.classify(for_class).flatten(2).transpose(1, 2),
                selection.flatten(2).transpose(1, 2),
                torch.stack(corners, dim=-1),
                torch.stack((x / width, y / height), dim=-1),
            ))  # fmt: skip
        class_logits, selection, boxes = (torch.cat(parts, dim=1) for parts in list(zip(*levels, strict=True))[:3])
        return class_logits, selection, boxes, torch.cat([level[3] for level in levels])

    def loss(
        self,
        class_logits: torch.Tensor,
        logits: torch.Tensor,
        corners: torch.Tensor,
        points: torch.Tensor,
        labels: Labels,
    ) -> dict[str, torch.Tensor]:
        """The three losses, weighted; all 0 if no image is labelled.

        Args:
            class_logits: (B, N, num_labels), trained by `_POSITIVES` positions per object.
            logits: (B, N, num_labels), class logits plus selection, trained by one position per object.
            corners: (B, N, 4) predicted left, top, right, bottom.
            points: (N, 2) positions x, y.
            labels: See `EupeForObjectDetection`. Raises `ValueError` if they do not fit.
        """
        labels = read_detection_labels(labels, len(logits), self.config.num_labels)
        chosen = [i for i, label in enumerate(labels) if label is not None]
        objects = [_objects(label, points.device) for label in labels if label is not None]
        corners = corners[chosen]
        losses = {}
        for name, scores, count in (("class", class_logits[chosen], _POSITIVES), ("select", logits[chosen], 1)):
            targets, owner = self.targets(scores.detach(), corners.detach(), points, objects, count)
            positives = owner >= 0
            cross_entropy = functional.binary_cross_entropy_with_logits(scores.float(), targets, reduction="sum")
            losses[f"loss_{name}"] = cross_entropy / positives.sum().clamp_min(1)
            if name == "class":
                truth = [boxes[index[index >= 0]] for (_, boxes), index in zip(objects, owner, strict=True)]
                truth = torch.cat([corners.new_zeros(0, 4), *truth])
                distance = 1 - generalized_overlap(corners[positives], truth)
                losses["loss_box"] = _BOX_WEIGHT * distance.sum() / positives.sum().clamp_min(1)
        return losses

    @torch.no_grad()
    def targets(
        self,
        logits: torch.Tensor,
        corners: torch.Tensor,
        points: torch.Tensor,
        objects: Sequence[tuple[torch.Tensor, torch.Tensor]],
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets of the scores (B, N, num_labels), and the object of each position (B, N), -1 for none.

        The targets say how well a position fits its object, in [0, 1]; elsewhere they are 0.
        """
        targets = torch.zeros_like(logits, dtype=torch.float32)
        owner = torch.full(logits.shape[:2], -1, device=logits.device)
        for i, (classes, boxes) in enumerate(objects):
            if len(classes):
                scores = logits[i].float().sigmoid()[:, classes]  # (N, objects)
                owner[i], quality = assign(scores, overlap(corners[i], boxes), points, boxes, count)
                positions = (owner[i] >= 0).nonzero()[:, 0]
                targets[i, positions, classes[owner[i, positions]]] = quality[positions]
        return targets, owner


def _tower(width: int) -> nn.Sequential:
    def layer() -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        return convolution, nn.GroupNorm(_GROUPS, width), nn.SiLU()

    return nn.Sequential(*layer(), *layer())


def _objects(label: Mapping[str, torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Class ids (n,) and boxes (n, 4) as left, top, right, bottom."""
    boxes = label["boxes"].to(device, torch.float32).reshape(-1, 4)
    return label["class_labels"].to(device).long().reshape(-1), center_to_corners_format(boxes)


def detection_strides(config: EupeConfig) -> list[int]:
    """Strides of the levels in pixels, from the configuration or by default; see `EupeConfig`."""
    if config.detection_strides is not None:
        return list(config.detection_strides)
    base = config.patch_size if config.backbone_type == "vit" else 16
    finest = base if base % 2 else base // 2
    return [finest, 2 * finest, 4 * finest]


class EupeForObjectDetection(EupeTaskModel):
    """An EUPE encoder with an anchor-free detection head on a feature pyramid.

    `config.num_labels` sets the classes, `config.detection_strides` the levels (add a finer one, e.g. 4, for small
    objects), `config.detection_hidden_size` their width, `config.out_indices` the stages that the pyramid reads. A
    ConvNeXt with only its last stage chosen, as by default, gets its last three instead.

    Labels are one dictionary per image, as for transformers' detectors: `class_labels` (objects,) from 0 and `boxes`
    (objects, 4), centre x, centre y, width and height as shares of the image's sides; empty tensors for an image
    without objects. Arrays and lists will do. `None` stands for an image that is not labelled and has no loss. The
    output is an `EupeObjectDetectionOutput`, for `EupeImageProcessor.post_process_object_detection`.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeForObjectDetection, variant_config

    >>> model = EupeForObjectDetection(variant_config("eupe-t", num_labels=3))  # the head is new: train it
    >>> labels = [{"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.4, 0.2, 0.3]])}]
    >>> outputs = model(torch.zeros(1, 3, 64, 96), labels=labels)
    >>> outputs.logits.shape, outputs.pred_boxes.shape  # strides 8, 16 and 32: 8 x 12 + 4 x 6 + 2 x 3 positions
    (torch.Size([1, 126, 3]), torch.Size([1, 126, 4]))
    >>> sorted(outputs.loss_dict)
    ['loss_box', 'loss_class', 'loss_select']

    ```
    """

    task = "detection"
    head_class = EupeDetectionHead
    head_fields = ("out_indices", "id2label", "detection_hidden_size", "detection_strides")
    _task_auto_class = "AutoModelForObjectDetection"
    _pipeline_tag = "object-detection"

    @classmethod
    def complete_config(cls, config: EupeConfig) -> EupeConfig:
        """Choose the last three stages of a ConvNeXt with only its last one chosen, which has no fine maps.

        Stages after the last one that a level reads are left out.
        """
        if config.backbone_type == "vit":
            return config
        count, chosen = config.num_stages, list(config.out_indices)
        if chosen in ([count], [-1]):
            chosen = list(range(max(1, count - 2), count + 1))
        strides, given = detection_strides(config), [config.stage_stride(index) for index in chosen]
        chosen = chosen[: count_read(given, strides)]
        if chosen == list(config.out_indices):
            return config
        config = copy.deepcopy(config)
        config.out_indices = chosen
        return config


# Without the package, too: the pipeline runs classes that this table does not have, and logs an error.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(EupeConfig.model_type, EupeForObjectDetection.__name__)
