# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Image classification: a linear head on the global features of an EUPE encoder."""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_eupe import EupeConfig
from .modeling_eupe_head import EupeTaskModel, Stages, check_class_ids, loss_where_labelled


_IGNORE_INDEX = -100  # torch's: an image that has no class


class EupeImageClassificationHead(nn.Module):
    """Linear layer on the global features of the chosen stages, and on the means of their maps if configured."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.config = config
        channels = sum(config.out_channels)
        self.classifier = nn.Linear(2 * channels if config.classify_patch_mean else channels, config.num_labels)

    def forward(
        self, feature_maps: Stages, cls_tokens: Stages, image_size: tuple[int, int], labels: torch.Tensor | None = None
    ) -> ImageClassifierOutput:
        """Feature maps and global features to `logits` (B, num_labels), and their `loss`."""
        features = list(cls_tokens)
        if self.config.classify_patch_mean:
            features += [feature_map.mean(dim=(2, 3)) for feature_map in feature_maps]
        logits = self.classifier(torch.cat(features, dim=1))
        return ImageClassifierOutput(loss=loss_where_labelled(self.loss, logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy, binary cross entropy per class, or mean squared error, by `config.problem_type`.

        The first labels set a problem type that is `None`, as in transformers, to be saved: pipelines read it. One
        output is a regression. With more outputs, (B,) integers are one class per image, floats and (B, num_labels)
        several labels per image.
        """
        problem, classes = self.config.problem_type, self.config.num_labels
        if problem is None:
            is_multiple = labels.is_floating_point() or labels.shape == logits.shape
            problem = "multi_label_classification" if is_multiple else "single_label_classification"
            problem = "regression" if classes == 1 else problem
        if problem == "single_label_classification":
            labels = labels.reshape(-1).long()
            hint = f"Set num_labels or id2label to match your data; {_IGNORE_INDEX} is ignored."
            check_class_ids(labels, classes, hint, _IGNORE_INDEX)
            self.config.problem_type = problem
            total = functional.cross_entropy(logits.float(), labels, ignore_index=_IGNORE_INDEX, reduction="sum")
            return total / (labels != _IGNORE_INDEX).sum().clamp_min(1)
        labels = labels.reshape(logits.shape) if labels.numel() == logits.numel() else labels
        if labels.shape != logits.shape:
            shape = f"({logits.shape[0]}, {classes})"
            found = f"{tuple(labels.shape)}; one class per image needs integers"
            raise ValueError(f"labels for {problem} must be {shape}, got {found}.")
        _check_values(labels, problem)
        self.config.problem_type = problem
        loss = functional.mse_loss if problem == "regression" else functional.binary_cross_entropy_with_logits
        return loss(logits.float(), labels.float())


def _check_values(labels: torch.Tensor, problem: str) -> None:
    """Refuse labels that are not finite, and several labels per image that are not shares."""
    if torch.compiler.is_compiling() or not labels.numel():  # looking at values would break the graph
        return
    low, high = (float(bound) for bound in labels.float().aminmax())
    if not math.isfinite(low + high):
        raise ValueError(f"labels for {problem} must be finite numbers, they go from {low} to {high}.")
    if problem == "multi_label_classification" and not 0 <= low <= high <= 1:
        cause = " They look like percent: divide by 100." if low >= 0 and 1 < high <= 100 else ""
        span = f"they go from {low:.4g} to {high:.4g}"
        raise ValueError(f"labels for {problem} must be zeros and ones, or probabilities; {span}.{cause}")


class EupeForImageClassification(EupeTaskModel):
    """An EUPE encoder with a linear classifier on its global feature.

    `config.classify_patch_mean` adds the mean patch feature, `config.out_indices` the features of earlier stages.
    Labels are (B,) class ids, -100 for no class; (B, num_labels) zeros and ones for several labels per image; (B,) or
    (B, num_labels) floats for regression. `config.problem_type` says which; the first labels set it if it is `None`.
    The output has `logits` (B, num_labels).

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeForImageClassification, variant_config

    >>> config = variant_config("eupe-t", id2label={0: "cat", 1: "dog", 2: "bird"})
    >>> model = EupeForImageClassification(config).eval()  # the head is new: train it before you use it
    >>> model(torch.zeros(1, 3, 64, 64)).logits.shape
    torch.Size([1, 3])

    ```
    """

    task = "classification"
    head_class = EupeImageClassificationHead
    head_fields = ("out_indices", "id2label", "problem_type", "classify_patch_mean")
    _task_auto_class = "AutoModelForImageClassification"
    _pipeline_tag = "image-classification"
