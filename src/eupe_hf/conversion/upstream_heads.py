# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Upstream's linear heads for segmentation and depth: read the files of its evaluation code, and write them.

`load_head` puts a head on an encoder, `save_head` writes it back. Tensors are only renamed, so a round trip is
bit-equal.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.models.reading_eupe import CheckpointError

from .checkpoints import Checkpoint, Finish, save_tensors
from .layouts import StateDict, check_tensors
from .tensor_files import read_state_dict, strip_prefixes


_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class UpstreamHead:
    """How upstream names a head's tensors: a batch norm, then a 1x1 convolution.

    Args:
        convolution: Name of the convolution.
        prefix: Of every key in the files that upstream's evaluation code writes.
    """

    convolution: str
    prefix: str = ""

    @property
    def names(self) -> dict[str, str]:
        """Our name of each tensor, by upstream's."""
        parts = ("weight", "bias", "running_mean", "running_var", _COUNT)
        names = {f"batchnorm_layer.{part}": f"head.linear.batch_norm.{part}" for part in parts}
        return names | {f"{self.convolution}.{part}": f"head.linear.conv.{part}" for part in ("weight", "bias")}


TASKS = {"segmentation": UpstreamHead("conv", "segmentation_model.1."), "depth": UpstreamHead("conv_depth")}
_PREFIXES = ("module.", "segmentation_model.1.")


def load_head(
    path: str | os.PathLike, task: str, encoder: Checkpoint, layers: Sequence[int] | None = None
) -> Checkpoint:
    """Read a head of upstream's evaluation code and put it on an encoder.

    Args:
        path: The head's file: `{"model": {...}, "optimizer": ...}` or the tensors alone, `.pt` or `.safetensors`,
            with or without the prefixes "module." and "segmentation_model.1.".
        task: "segmentation" or "depth".
        encoder: From `load_checkpoint`.
        layers: Blocks (ViT) or stages (ConvNeXt) that the head reads, counted from 0, in ascending order; by default
            the last. The file only says how many channels they have together. Layer i is `config.out_indices` i + 1.

    Returns:
        The checkpoint of the task model. The file gives the number of classes or depth bins. It has no class names,
        and the bins go from 0.001 to 10 metres, as upstream's do.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: The file is not a head of this task, or does not fit these layers. The message names the
            key, or the channels and the layers that would fit.
        ValueError: The task is unknown, or the encoder does not have these layers.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; upstream has heads for {' and '.join(map(repr, TASKS))}.")
    layers = _checked_layers(layers, encoder.config)
    state = strip_prefixes(read_state_dict(path), _PREFIXES)
    outputs = _check_head(state, task, encoder.config, layers, path)
    config = _task_config(encoder.config, layers, task, outputs)
    head = {ours: state[raw] for raw, ours in TASKS[task].names.items()}
    loaded = dataclasses.replace(encoder, config=config, head=head, task=task)
    if len(dtypes := {t.dtype for t in loaded.model_state.values() if t.is_floating_point()}) > 1:
        raise CheckpointError(
            f"{path} and the encoder differ in their number format ({', '.join(sorted(map(str, dtypes)))}), and a "
            "model has one: save both in the same format."
        )
    return loaded


def _checked_layers(layers: Sequence[int] | None, config: EupeConfig) -> list[int]:
    count = config.num_stages
    chosen = [count - 1] if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or not all(0 <= layer < count for layer in chosen):
        what = "blocks" if config.backbone_type == "vit" else "stages"
        raise ValueError(
            f"layers must be {what} of this encoder, from 0 to {count - 1} in ascending order, got "
            f"{' '.join(map(str, chosen)) or 'none'}."
        )
    return chosen


def _check_head(state: StateDict, task: str, config: EupeConfig, layers: list[int], path: str | os.PathLike) -> int:
    """Check every tensor of a head. Returns its number of outputs."""
    ours = TASKS[task].convolution
    for other, head in TASKS.items():
        if f"{head.convolution}.weight" in state and f"{ours}.weight" not in state:
            raise CheckpointError(
                f"{path} holds a head for {other} ('{head.convolution}.weight'), not for {task} ('{ours}.weight'): "
                f"choose the task {other!r}, or another file."
            )
    weight = state.get(f"{ours}.weight")
    outputs, channels = weight.shape[:2] if weight is not None and weight.ndim == 4 else (1, None)
    given = sum(config.hidden_sizes[layer] for layer in layers)
    # One tensor of another width is damaged, and named below. Where all agree, the head belongs to other layers.
    agreed = {len(tensor) for key, tensor in state.items() if key.startswith("batchnorm_layer.") and tensor.ndim == 1}
    if channels is not None and channels != given and agreed == {channels}:
        numbers = " ".join(map(str, layers))
        raise CheckpointError(
            f"{path} reads {channels} channels; layers {numbers} of this encoder ({config.backbone_type}, width "
            f"{config.hidden_size}) give {given}. {_fitting(config, channels)}"
        )
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(TASKS[task].names, (given,))
    expected |= {f"{ours}.weight": (outputs, given, 1, 1), f"{ours}.bias": (outputs,)}
    key = f"batchnorm_layer.{_COUNT}"  # the only integer
    expected |= {key: ()}
    count = state.get(key, torch.tensor(0))
    if count.ndim != 0 or count.is_floating_point():
        raise CheckpointError(f"{key!r} must be one whole number, got {count.dtype} of shape {tuple(count.shape)}.")
    try:
        check_tensors({name: tensor.float() if name == key else tensor for name, tensor in state.items()}, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a {task} head for this encoder. {error}") from error
    if task == "depth" and outputs < 2:
        raise CheckpointError(f"{path} has {outputs} depth bin; a depth head needs at least 2.")
    return outputs


def _fitting(config: EupeConfig, channels: int) -> str:
    """The layers that have this many channels together, as a sentence."""
    count = config.num_stages
    if config.backbone_type == "vit":
        number, rest = divmod(channels, config.hidden_size)
        if not rest and 1 <= number <= count:
            # upstream's choices: the last block, or four at even intervals
            even = [count * (i + 1) // number - 1 for i in range(number)]
            return f"{number} layers would fit, for example {' '.join(map(str, even))}."
    else:
        choices = itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(1, count + 1))
        fitting = [c for c in choices if sum(config.hidden_sizes[layer] for layer in c) == channels]
        if fitting:
            return f"Layers {' or '.join(' '.join(map(str, c)) for c in fitting)} would fit."
    return "No choice of its layers gives this number: the head was trained on another encoder."


def _task_config(config: EupeConfig, layers: list[int], task: str, outputs: int) -> EupeConfig:
    values = {**config.to_dict(), "out_features": None, "out_indices": [layer + 1 for layer in layers]}
    if "id2label" not in TASK_MODELS[task].head_fields:
        return EupeConfig(**{**values, "num_depth_bins": outputs})
    # class names in the encoder's folder are those of another head
    values = {name: value for name, value in values.items() if name not in ("id2label", "label2id")}
    return EupeConfig(**{**values, "num_labels": outputs})


def raw_head(checkpoint: Checkpoint) -> tuple[StateDict, str]:
    """The head of a task model by upstream's names, and its task; the inverse of `load_head`.

    Args:
        checkpoint: From `load_checkpoint`, for the folder of a task model.

    Raises:
        CheckpointError: There is no head, or upstream has no head of its kind.
    """
    classes = {TASK_MODELS[task].__name__: task for task in TASKS}
    architectures = checkpoint.config.architectures or []
    task = next((classes[name] for name in architectures if name in classes), None)
    if task is None or not checkpoint.head:
        found = (", ".join(architectures) or "no class") if checkpoint.head else "an encoder without a head"
        raise CheckpointError(f"Upstream has heads for {' and '.join(classes)}; this is {found}.")
    names = TASKS[task].names
    if missing := [name for name in names.values() if name not in checkpoint.head]:
        raise CheckpointError(f"The head lacks {', '.join(map(repr, missing))}.")
    if unexpected := [name for name in checkpoint.head if name not in names.values()]:
        raise CheckpointError(f"The head holds {', '.join(map(repr, unexpected))}, which upstream's has no place for.")
    return {raw: checkpoint.head[ours] for raw, ours in names.items()}, task


def save_head(checkpoint: Checkpoint, output: str | os.PathLike, finish: Finish | None = None) -> Path:
    """Write the head of a task model as upstream's evaluation code does. Returns `output`.

    Args:
        checkpoint: From `load_checkpoint`, for the folder of a task model.
        output: The file: `.pt` gets `{"model": {...}}`, with the prefix "segmentation_model.1." for a segmentation
            head; `.safetensors` gets the same tensors by their bare names.
        finish: Called with the unfinished file.

    Raises:
        CheckpointError: There is no head, or upstream has no head of its kind.
    """
    state, task = raw_head(checkpoint)
    if Path(output).suffix != ".safetensors":
        state = {TASKS[task].prefix + key: tensor for key, tensor in state.items()}
    return save_tensors(state, output, container="model", finish=finish)
