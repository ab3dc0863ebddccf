# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the heads share: the model of one task, the linear dense head, sliding windows, and checks of labels."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_eupe import EupeConfig
from .modeling_eupe import EupeBackbone, EupePreTrainedModel


Stages = tuple[torch.Tensor, ...]  # one tensor per stage: maps (B, C, H, W) or global features (B, C)

_Model = TypeVar("_Model", bound="EupeModelWithHeads")


class EupeModelWithHeads(EupePreTrainedModel):
    """An encoder, `self.eupe`, that heads train with or leave as it is."""

    eupe: EupeBackbone

    @classmethod
    def _on_encoder_of(cls: type[_Model], other: "EupeModelWithHeads", config: Any) -> _Model:
        """A model of this class with the encoder of another. Its heads are on the meta device, to be replaced."""
        config.name_or_path = other.config.name_or_path
        with torch.device("meta"):
            model = cls(config)
        model.eupe.share_encoder(other.eupe)
        return model

    def freeze_backbone(self) -> None:
        """Train only heads: the encoder gets no gradient, and nothing in it is random, also in train mode."""
        self.eupe.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Train the encoder with the heads, but for what they do not use: later blocks, a ViT's mask token."""
        self.eupe.requires_grad_(True)


class EupeTaskModel(EupeModelWithHeads):
    """An encoder, `self.eupe`, with one head, `self.head`. Subclasses declare the task and describe its outputs.

    A head is called with the feature maps and global features of the stages in `config.out_indices`, the size of the
    images in pixels and the labels, if any. It returns the output of the task with its loss. It sees the encoder only
    through the contract of `EupeBackbone`, so every head works on all six models, and several share one encoder.

    A subclass also sets `_task_auto_class` and `_pipeline_tag`, the Auto class and the pipeline of transformers.
    """

    task: str  # its name, in `TASK_MODELS`
    head_class: type[nn.Module]
    head_fields: tuple[str, ...]  # what the head reads from its `EupeConfig` beside the encoder's architecture

    def __init__(self, config: EupeConfig):
        config = self.complete_config(config)
        super().__init__(config)
        self.eupe = EupeBackbone(config)
        self.head = self.head_class(config)
        self.post_init()

    @classmethod
    def complete_config(cls, config: EupeConfig) -> EupeConfig:
        """The configuration, or a changed copy where the task needs other stages than those chosen by default."""
        return config

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, labels: Any = None, **kwargs: Unpack[TransformersKwargs]) -> Any:
        """Run encoder and head.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            labels: Labels of the task, see the class.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            The output of the head, see the class, with its `loss` if there are labels.

        Raises:
            ValueError: Labels of a wrong shape, or values out of range.
        """
        return self._predict(pixel_values, labels, **kwargs)

    def _predict(self, pixel_values: torch.Tensor, labels: Any, **kwargs: Any) -> Any:
        features = self.eupe(pixel_values, return_class_token=True, **kwargs)
        outputs = self.head(features.feature_maps, features.cls_tokens, tuple(pixel_values.shape[2:]), labels)
        outputs.hidden_states, outputs.attentions = features.hidden_states, features.attentions
        if outputs.loss is not None and (problem := self.head.config.problem_type):
            self.config.problem_type = problem  # what the head takes its labels for; with an adapter it is a copy
        return outputs


class EupeLinearDenseHead(nn.Module):
    """Upstream's linear head for dense tasks: maps joined, dropout, batch norm, 1x1 convolution."""

    def __init__(self, config: EupeConfig, out_channels: int):
        super().__init__()
        channels = sum(config.out_channels)
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.batch_norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=1)

    @torch.no_grad()
    def init_head_weights(self) -> None:
        """As upstream's evaluation code: normal with standard deviation 0.01, no bias."""
        init.normal_(self.conv.weight, std=0.01)
        init.zeros_(self.conv.bias)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, H_i, W_i), resized bilinearly to the first one's size, to (B, out_channels, H_0, W_0)."""
        size = feature_maps[0].shape[2:]
        joined = torch.cat([resize(feature_map, size) for feature_map in feature_maps], dim=1)
        return self.conv(self.batch_norm(self.dropout(joined)))


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize (B, C, H, W) bilinearly, with corners not aligned; computed in float32, returned in the dtype given."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False).to(maps.dtype)


def average_windows(
    function: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    window: tuple[int, int],
    step: tuple[int, int],
    batch_size: int = 8,
    stride: int = 1,
) -> torch.Tensor:
    """Maps of large images, computed in batches of sliding windows and averaged where windows overlap.

    Args:
        function: Windows (n, num_channels, *window) to maps (n, C, window / stride).
        pixel_values: (B, num_channels, H, W), at least as large as the window.
        window: Height and width of the windows in pixels.
        step: Pixels from one window to the next, down and to the right, at most `window`.
        batch_size: Windows per call of `function`.
        stride: Pixels between positions of the map; divides `step` and the sides of images and windows.

    Returns:
        (B, C, H / stride, W / stride), float32.
    """
    batch, (rows, columns) = len(pixel_values), (side // stride for side in window)
    height, width = (side // stride for side in pixel_values.shape[2:])
    places = [(i, *place) for i in range(batch) for place in _windows(pixel_values.shape[2:], window, step)]
    total, count = pixel_values.new_zeros(()), pixel_values.new_zeros((1, 1, height, width), dtype=torch.float32)
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        views = [pixel_values[i, :, top : top + window[0], left : left + window[1]] for i, top, left in chosen]
        maps = function(torch.stack(views)).float()
        if total.ndim == 0:  # now the number of channels is known
            total = maps.new_zeros((batch, maps.shape[1], height, width))
        for (i, top, left), part in zip(chosen, maps, strict=True):
            top, left = top // stride, left // stride
            total[i, :, top : top + rows, left : left + columns] += part
            if i == 0:
                count[..., top : top + rows, left : left + columns] += 1
    return total / count


def _windows(size: Sequence[int], window: tuple[int, int], step: tuple[int, int]) -> list[tuple[int, int]]:
    # the last window of a row or column ends with the image, so whole windows cover every pixel
    tops, lefts = (sorted({*range(0, size[i] - window[i], step[i]), size[i] - window[i]}) for i in range(2))
    return [(top, left) for top in tops for left in lefts]


def loss_where_labelled(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    prediction: torch.Tensor,
    labels: torch.Tensor | Sequence[torch.Tensor | None] | None,
) -> torch.Tensor | None:
    """Loss of a head over the images that have labels.

    Args:
        loss: Function of predictions and labels.
        prediction: (B, ...).
        labels: (B, ...); or one tensor per image, `None` for images without labels; or `None` for no loss at all.

    Raises:
        ValueError: Not one entry per image, entries of different shapes, or labels that `loss` refuses.
    """
    if labels is None or isinstance(labels, torch.Tensor):
        return None if labels is None else loss(prediction, labels)
    if len(labels) != len(prediction):
        raise ValueError(f"labels must have one entry per image, {len(prediction)}, got {len(labels)}.")
    device = prediction.device
    given = {i: torch.as_tensor(label, device=device) for i, label in enumerate(labels) if label is not None}
    if not given:
        return prediction.sum() * 0  # depends on every parameter, as distributed training needs
    shapes = {tuple(label.shape) for label in given.values()}
    if len(shapes) > 1:
        raise ValueError(f"labels of one batch must have one shape, got {', '.join(map(str, sorted(shapes)))}.")
    return loss(prediction[list(given)], torch.stack(list(given.values())))


def check_class_ids(labels: torch.Tensor, num_labels: int, hint: str, ignore_index: int | None = None) -> None:
    """Refuse class ids, integers of any type, outside 0 to `num_labels` - 1 that are not the ignore index."""
    if torch.compiler.is_compiling():  # looking at values would break the graph
        return
    labels = labels.long()  # torch compares few of its unsigned types
    counted = labels if ignore_index is None else labels[labels != ignore_index]
    low, high = (int(bound) for bound in counted.aminmax()) if counted.numel() else (0, 0)
    if low < 0 or high >= num_labels:
        cause = " They count from 1: subtract 1." if (low, high) == (1, num_labels) else ""
        raise ValueError(
            f"labels go from {low} to {high}, but the model has {num_labels} classes, 0 to {num_labels - 1}.{cause} "
            f"{hint}"
        )


def check_ignore_index(ignore_index: int, num_labels: int, option: str) -> None:
    """Refuse an ignore index that is also a class; `option` is the name under which the caller sets it."""
    if 0 <= ignore_index < num_labels:
        raise ValueError(
            f"{ignore_index} is a class, since there are {num_labels} classes, 0 to {num_labels - 1}, and also the "
            f"ignore index: its pixels would count for nothing. Set {option} to a number that is no class, e.g. -100."
        )


def check_label_maps(labels: torch.Tensor, batch_size: int, what: str) -> None:
    """Refuse label maps that are not (B, H, W) with the batch size of the images."""
    if labels.ndim != 3 or labels.shape[0] != batch_size:
        raise ValueError(
            f"labels must be {what}, one map per image, ({batch_size}, height, width), got {tuple(labels.shape)}."
        )
