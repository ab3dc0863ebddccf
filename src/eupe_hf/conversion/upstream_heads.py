# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Upstream's linear heads for segmentation and depth: reading the files of its evaluation code, and writing them.

`load_head` puts a head on an encoder, `convert_head` writes both as a task model, `save_head` is the way back. Tensors
are only renamed, so a round trip is bit-equal.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe_depth import EupeForDepthEstimation
from eupe_hf.models.modeling_eupe_head import EupeTaskModel
from eupe_hf.models.modeling_eupe_segmentation import EupeForSegmentation

from .checkpoints import (
    Checkpoint,
    read_state_dict,
    save_tensors,
    strip_prefixes,
)
from .layouts import CheckpointError, StateDict, check_tensors


@dataclass(frozen=True)
class HeadTask:
    """A task of which upstream has a head.

    Args:
        model_class: Our class of the task.
        convolution: Name of the 1x1 convolution in upstream's head.
        outputs: Field of the configuration that counts its outputs.
        prefix: Of every key in the files that upstream's evaluation code writes.
    """

    model_class: type[EupeTaskModel]
    convolution: str
    outputs: str
    prefix: str = ""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.model_class.task

    @property
    def modules(self) -> dict[str, str]:
        """Our name of each module of the head, by upstream's."""
        return {"batchnorm_layer": "head.linear.batch_norm", self.convolution: "head.linear.conv"}

    @property
    def names(self) -> dict[str, str]:
        """Our name of each tensor of the head, by upstream's."""
        statistics = ("running_mean", "running_var", _COUNT)
        parts = [("batchnorm_layer", part) for part in ("weight", "bias", *statistics)]
        parts += [(self.convolution, part) for part in ("weight", "bias")]
        return {f"{module}.{part}": f"{self.modules[module]}.{part}" for module, part in parts}


_COUNT = "num_batches_tracked"


TASKS = {
    task.name: task
    for task in (
        HeadTask(EupeForSegmentation, "conv", "num_labels", "segmentation_model.1."),
        HeadTask(EupeForDepthEstimation, "conv_depth", "num_depth_bins"),
    )
}


_PREFIXES = ("module.", "segmentation_model.1.")


@dataclass(frozen=True, kw_only=True)
class TaskCheckpoint(Checkpoint):
    """An encoder's checkpoint with one of upstream's heads on it.

    Args:
        task: Of the head.
    """

    task: HeadTask

    @property
    def model_state(self) -> StateDict:
        """All tensors by their names in the task model."""
        prefix = self.task.model_class.base_model_prefix
        return {**{f"{prefix}.{key}": tensor for key, tensor in self.state.items()}, **self.head}

    def build_model(self) -> EupeTaskModel:
        """The task model with these weights, in their dtype, in eval mode. It shares the memory of `model_state`."""
        with torch.device("meta"):
            model = self.task.model_class(self.config)
        model.load_state_dict(self.model_state, assign=True)
        return model.eval()


# ---- reading ----


def load_head(
    path: str | os.PathLike, task: str, encoder: Checkpoint, layers: Sequence[int] | None = None
) -> TaskCheckpoint:
    """Read a head of upstream's evaluation code and put it on an encoder.

    Args:
        path: File of the head: `{"model": {...}, "optimizer": ...}` or the tensors alone, `.pt` or `.safetensors`,
            keys with or without "module." and "segmentation_model.1." before them.
        task: "segmentation" or "depth".
        encoder: What `load_checkpoint` gave.
        layers: Blocks (ViT) or stages (ConvNeXt) that the head reads, counted from 0, in ascending order; by default
            the last. The file does not say: only how many channels they have together. Layer i is
            `config.out_indices` i + 1.

    Returns:
        The checkpoint of the task model. How many classes or depth bins there are is taken from the file; classes
        have no names there, and the bins go from 0.001 to 10 metres, as upstream's.

    Raises:
        FileNotFoundError: Nothing at `path`.
        CheckpointError: No head of this task, or one that does not fit these layers; the message names the key, or
            the numbers of channels and the layers that would fit.
        ValueError: Unknown task, or layers that the encoder does not have.
    """
    wanted = get_task(task)
    layers = _checked_layers(layers, encoder.config)
    state = strip_prefixes(read_state_dict(path), _PREFIXES)
    outputs = _check_head(state, wanted, encoder.config, layers, path)
    config = _task_config(encoder.config, layers, wanted, outputs)
    head = {ours: state[raw] for raw, ours in wanted.names.items()}
    kept = {field.name: getattr(encoder, field.name) for field in fields(Checkpoint)}
    loaded = TaskCheckpoint(**{**kept, "config": config, "head": head}, task=wanted)
    if len(dtypes := {t.dtype for t in loaded.model_state.values() if t.is_floating_point()}) > 1:
        raise CheckpointError(
            f"{path} and the encoder differ in their number format ({', '.join(sorted(map(str, dtypes)))}), and a "
            "model has one: save both in the same."
        )
    return loaded


def get_task(name: str) -> HeadTask:
    """The task of this name. Raises `ValueError` for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}; upstream has heads for {' and '.join(map(repr, TASKS))}.")
    return TASKS[name]


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


def _check_head(
    state: StateDict, task: HeadTask, config: EupeConfig, layers: list[int], path: str | os.PathLike
) -> int:
    """Check every tensor of a head. Returns its number of outputs."""
    for other in TASKS.values():
        if other is not task and f"{other.convolution}.weight" in state and f"{task.convolution}.weight" not in state:
            raise CheckpointError(
                f"{path} holds a head for {other.name} ({other.convolution + '.weight'!r}), not for {task.name} "
                f"({task.convolution + '.weight'!r}): choose the task {other.name!r}, or the other file."
            )
    weight = state.get(f"{task.convolution}.weight")
    outputs, channels = weight.shape[:2] if weight is not None and weight.ndim == 4 else (1, None)
    given = sum(config.hidden_sizes[layer] for layer in layers)
    # one tensor of another width is damaged, and named below; where they agree, the head belongs to other layers
    agreed = {len(tensor) for key, tensor in state.items() if key.startswith("batchnorm_layer.") and tensor.ndim == 1}
    if channels is not None and channels != given and agreed == {channels}:
        raise CheckpointError(
            f"{path} reads {channels} channels; layers {_listed(layers)} of this encoder "
            f"({config.backbone_type}, width {config.hidden_size}) give {given}.{_fitting(config, channels)}"
        )
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(task.names, (given,))
    expected[f"{task.convolution}.weight"] = (outputs, given, 1, 1)
    expected[f"{task.convolution}.bias"] = (outputs,)
    count = state.get(f"batchnorm_layer.{_COUNT}")
    if count is not None:
        if count.ndim != 0 or count.is_floating_point():
            raise CheckpointError(
                f"'batchnorm_layer.{_COUNT}' must be one whole number, got {count.dtype} of shape "
                f"{tuple(count.shape)}."
            )
        # the one tensor of integers; its absence is reported with the others
        state = {key: tensor for key, tensor in state.items() if tensor is not count}
        del expected[f"batchnorm_layer.{_COUNT}"]
    try:
        check_tensors(state, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no {task.name} head for this encoder. {error}") from error
    if task.outputs == "num_depth_bins" and outputs < 2:
        raise CheckpointError(f"{path} has {outputs} bin of depth; a depth head needs at least 2.")
    return outputs


def _listed(layers: Sequence[int]) -> str:
    return " ".join(map(str, layers))


def _fitting(config: EupeConfig, channels: int) -> str:
    """Which layers have this many channels together, as the end of a message; empty where none have."""
    count = config.num_stages
    if config.backbone_type == "vit":
        number, rest = divmod(channels, config.hidden_size)
        if rest or not 1 <= number <= count:
            return " No choice of its layers gives as many: the head was trained on another encoder."
        # upstream's choices: the last block, or four at even intervals
        even = [count * (i + 1) // number - 1 for i in range(number)]
        return f" {number} layers would fit, for example {_listed(even)}."
    choices = itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(1, count + 1))
    fitting = [_listed(c) for c in choices if sum(config.hidden_sizes[layer] for layer in c) == channels]
    if not fitting:
        return " No choice of its layers gives as many: the head was trained on another encoder."
    return f" Layers {' or '.join(fitting)} would fit."


def _task_config(config: EupeConfig, layers: list[int], task: HeadTask, outputs: int) -> EupeConfig:
    values = {**config.to_dict(), "out_features": None, "out_indices": [layer + 1 for layer in layers]}
    if task.outputs != "num_labels":
        return EupeConfig(**{**values, task.outputs: outputs})
    # names of classes that the encoder's folder may hold are those of another head
    for name in ("id2label", "label2id"):
        values.pop(name, None)
    return EupeConfig(**{**values, "num_labels": outputs})


def raw_head(checkpoint: Checkpoint) -> tuple[StateDict, HeadTask]:
    """Upstream's names for the head of a task model, and its task; the inverse of `load_head`.

    Args:
        checkpoint: What `load_checkpoint` gave for the folder of a task model.

    Raises:
        CheckpointError: There is no head, or it is none that upstream has.
    """
    architectures = checkpoint.config.architectures or []
    task = next((task for task in TASKS.values() if task.model_class.__name__ in architectures), None)
    if task is None or not checkpoint.head:
        classes = " or ".join(task.model_class.__name__ for task in TASKS.values())
        found = "an encoder without a head" if not checkpoint.head else f"{', '.join(architectures) or 'no class'}"
        raise CheckpointError(f"The folder of an {classes} has a head that upstream knows; this is {found}.")
    return {raw: checkpoint.head[ours] for raw, ours in _checked_names(task, checkpoint.head).items()}, task


def _checked_names(task: HeadTask, head: StateDict) -> dict[str, str]:
    names = task.names
    if missing := [name for name in names.values() if name not in head]:
        raise CheckpointError(f"The head lacks {', '.join(map(repr, missing))}.")
    if unexpected := [name for name in head if name not in names.values()]:
        raise CheckpointError(f"The head holds {', '.join(map(repr, unexpected))}, which upstream's has no place for.")
    return names


def save_head(checkpoint: Checkpoint, output: str | os.PathLike) -> Path:
    """Write the head of a task model as upstream's evaluation code does.

    Args:
        checkpoint: What `load_checkpoint` gave for the folder of a task model.
        output: The file: `.pt` gets `{"model": {...}}`, the keys of a segmentation head behind
            "segmentation_model.1."; `.safetensors` gets the same tensors by their bare names.

    Returns:
        `output`.

    Raises:
        CheckpointError: There is no head, or it is none that upstream has.
    """
    state, task = raw_head(checkpoint)
    if Path(output).suffix != ".safetensors":
        state = {task.prefix + key: tensor for key, tensor in state.items()}
    return save_tensors(state, output, container="model")
