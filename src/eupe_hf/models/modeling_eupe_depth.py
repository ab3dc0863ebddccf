# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Depth estimation: upstream's linear head over depth bins on the dense features of an EUPE encoder."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_eupe import EupeConfig
from .modeling_eupe_head import (
    EupeLinearDenseHead,
    EupeTaskModel,
    Stages,
    check_label_maps,
    loss_where_labelled,
    resize,
)


_FAR = 10  # depths beyond so many times the largest are in another unit


class EupeDepthHead(nn.Module):
    """Linear head over bins of depth: the expected depth under a normalised score per bin, and its loss."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.config = config
        self.linear = EupeLinearDenseHead(config, config.num_depth_bins)

    def forward(
        self, feature_maps: Stages, cls_tokens: Stages, image_size: tuple[int, int], labels: torch.Tensor | None = None
    ) -> DepthEstimatorOutput:
        """Feature maps to `predicted_depth` (B, h, w) in metres, and its `loss`."""
        depth = self.depth(feature_maps)
        return DepthEstimatorOutput(loss=loss_where_labelled(self.loss, depth, labels), predicted_depth=depth)

    def depth(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Feature maps to depth (B, h, w) in metres, float32: the mean of the bins under their normalised scores."""
        config = self.config
        scores = self.linear(feature_maps).float().relu() + 0.1  # upstream's "linear" normalisation
        bins = torch.linspace(config.min_depth, config.max_depth, config.num_depth_bins, device=scores.device)
        return torch.einsum("bkhw,k->bhw", scores / scores.sum(dim=1, keepdim=True), bins)

    def loss(self, depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Scale-invariant log loss at the size of the labels (B, H, W), over pixels with a valid depth.

        Upstream's sigloss: sqrt(var(g) + 0.15 mean(g)^2), g the difference of the logarithms of predicted and true
        depth, each plus 0.001. Valid are finite depths above `config.min_depth` up to `config.max_depth`. Without two
        of them the loss is 0, but depths that are all over ten times too large are refused.
        """
        check_label_maps(labels, len(depth), "depth in metres")
        labels = labels.float()
        valid = labels.isfinite() & (labels > self.config.min_depth) & (labels <= self.config.max_depth)
        if int(valid.sum()) < 2:
            self._check_unit(labels)
            return depth.sum() * 0  # a variance needs two pixels
        predicted = resize(depth.float().unsqueeze(1), labels.shape[1:]).squeeze(1)
        error = torch.log(predicted[valid] + 1e-3) - torch.log(labels[valid] + 1e-3)
        return torch.sqrt(error.var() + 0.15 * error.mean() ** 2)

    def _check_unit(self, labels: torch.Tensor) -> None:
        """Refuse maps of which no depth counts, and all are far beyond `config.max_depth`."""
        known = labels[labels.isfinite() & (labels > 0)]
        low, high = map(float, known.aminmax()) if known.numel() else (0.0, 0.0)
        if self.config.max_depth * _FAR < low < high:  # one value alone stands for "unknown"
            raise ValueError(
                f"labels go from {low:.6g} to {high:.6g}, and depth counts up to max_depth={self.config.max_depth} "
                "metres. They look like millimetres: divide by 1000. Or raise max_depth."
            )


class EupeForDepthEstimation(EupeTaskModel):
    """An EUPE encoder with the linear depth head of upstream's evaluation code: 256 bins from 0.001 to 10 metres.

    `config.num_depth_bins`, `config.min_depth` and `config.max_depth` set the bins, `config.out_indices` the stages
    that the head reads. Labels are (B, H', W') depth in metres, of any size; depths that are not finite, not above
    `config.min_depth` or above `config.max_depth` are unknown. The output has `predicted_depth` (B, h, w) in metres,
    float32, at the resolution of the first feature map, for `EupeImageProcessor.post_process_depth_estimation`.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeForDepthEstimation, variant_config

    >>> model = EupeForDepthEstimation(variant_config("eupe-convnext-t", out_indices=[1, 2, 3, 4])).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).predicted_depth.shape  # the head is new: train it before you use it
    torch.Size([1, 16, 24])

    ```
    """

    task = "depth"
    head_class = EupeDepthHead
    head_fields = ("out_indices", "head_dropout", "num_depth_bins", "min_depth", "max_depth")
    _task_auto_class = "AutoModelForDepthEstimation"
    _pipeline_tag = "depth-estimation"

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: Any = None,
        flip_average: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DepthEstimatorOutput:
        """As `EupeTaskModel.forward`; `flip_average` averages with the prediction for the mirrored image.

        Upstream's evaluation averages too.
        """
        if not flip_average:
            return self._predict(pixel_values, labels, **kwargs)
        outputs = self._predict(pixel_values, None, **kwargs)
        mirrored = self._predict(pixel_values.flip(-1), None)
        depth = (outputs.predicted_depth + mirrored.predicted_depth.flip(-1)) / 2
        loss = loss_where_labelled(self.head.loss, depth, labels)
        states, attentions = outputs.hidden_states, outputs.attentions
        return DepthEstimatorOutput(loss=loss, predicted_depth=depth, hidden_states=states, attentions=attentions)
