# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation: upstream's linear head on the dense features of an EUPE encoder."""

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_eupe import EupeConfig
from .modeling_eupe_head import (
    EupeLinearDenseHead,
    EupeTaskModel,
    Stages,
    average_windows,
    check_class_ids,
    check_ignore_index,
    check_label_maps,
    loss_where_labelled,
    resize,
)


class EupeSegmentationHead(nn.Module):
    """Linear segmentation head: logits at the resolution of the first feature map, and their loss."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        check_ignore_index(config.semantic_loss_ignore_index, config.num_labels, "semantic_loss_ignore_index")
        self.config = config
        self.linear = EupeLinearDenseHead(config, config.num_labels)

    def forward(
        self, feature_maps: Stages, cls_tokens: Stages, image_size: tuple[int, int], labels: torch.Tensor | None = None
    ) -> SemanticSegmenterOutput:
        """Feature maps to `logits` (B, num_labels, h, w), and their `loss`."""
        logits = self.linear(feature_maps)
        return SemanticSegmenterOutput(loss=loss_where_labelled(self.loss, logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy at the size of the labels (B, H, W), without pixels labelled with the ignore index."""
        check_label_maps(labels, len(logits), "class ids")
        if labels.is_floating_point():
            raise ValueError(f"labels must be class ids, integers, got {labels.dtype}.")
        labels = labels.long()
        ignore = self.config.semantic_loss_ignore_index
        hint = f"{ignore} is ignored. ADE20K counts from 1: subtract 1, and make its 0 the ignore index."
        check_class_ids(labels, self.config.num_labels, hint, ignore)
        resized = resize(logits.float(), labels.shape[1:])
        total = functional.cross_entropy(resized, labels, ignore_index=ignore, reduction="sum")
        # a batch without one labelled pixel has the loss 0, not NaN
        return total / (labels != ignore).sum().clamp_min(1)


class EupeForSegmentation(EupeTaskModel):
    """An EUPE encoder with the linear segmentation head of upstream's evaluation code.

    `config.num_labels` sets the classes, `config.out_indices` the stages that the head reads. Labels are (B, H', W')
    class ids from 0, bool or integers of any type, and maps of any size, to which the loss resizes the logits;
    `config.semantic_loss_ignore_index` (255), which cannot be a class, is for pixels without one. The output has
    `logits` (B, num_labels, h, w) at the resolution of the first feature map, for
    `EupeImageProcessor.post_process_semantic_segmentation`.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeForSegmentation, variant_config

    >>> config = variant_config("eupe-t", num_labels=21, out_indices=[3, 6, 9, 12])
    >>> model = EupeForSegmentation(config).eval()  # the head is new: train it before you use it
    >>> model(torch.zeros(1, 3, 64, 96)).logits.shape
    torch.Size([1, 21, 4, 6])

    ```
    """

    task = "segmentation"
    head_class = EupeSegmentationHead
    head_fields = ("out_indices", "id2label", "head_dropout", "semantic_loss_ignore_index")
    _task_auto_class = "AutoModelForSemanticSegmentation"
    _pipeline_tag = "image-segmentation"

    @torch.no_grad()
    def predict_sliding_window(
        self, pixel_values: torch.Tensor, window: int = 512, step: int = 341, batch_size: int = 8
    ) -> torch.Tensor:
        """Logits of images larger than the window, as in upstream's protocol (window 512, stride 341).

        The logits of each window are resized to the window and averaged where windows overlap. Images smaller than
        the window are padded with zeros, and the padding is cut off again.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, of any size.
            window: Side of the square windows in pixels.
            step: Pixels from one window to the next, at most `window`.
            batch_size: Windows per forward pass.

        Returns:
            (B, num_labels, H, W), float32.

        Raises:
            ValueError: A step larger than the window, or numbers below 1.
        """
        if not 1 <= step <= window or batch_size < 1:
            raise ValueError(
                f"window, step and batch_size must be at least 1 and the step at most the window, got {window}, "
                f"{step} and {batch_size}."
            )
        height, width = pixel_values.shape[2:]
        padded = functional.pad(pixel_values, (0, max(0, window - width), 0, max(0, window - height)))

        def segment(views: torch.Tensor) -> torch.Tensor:
            return resize(self(views).logits.float(), (window, window))

        return average_windows(segment, padded, (window, window), (step, step), batch_size)[..., :height, :width]


# Without the package, too: the pipeline runs classes that this table does not have, and logs an error.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(EupeConfig.model_type, EupeForSegmentation.__name__)
