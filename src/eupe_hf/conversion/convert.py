# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversions that prove that no tensor changed, and comparisons of what two checkpoints compute.

What `eupe convert`, `eupe verify` and the scripts in `conversion/` do: those add their options, and tell the result.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eupe_hf.loading import pick_device
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.models.modeling_eupe import EupeModel

from .checkpoints import PROJECTOR_FILE, Checkpoint, load_checkpoint, projector_writer, save_layout, save_model_folder
from .layouts import Layout
from .upstream_heads import TASKS, get_task, load_head, raw_head, save_head
from .verification import Row, compare_models, compare_tensors, compare_with_golden, format_table


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    variant: str | None = None,
    keep_projectors: bool = False,
) -> Path:
    """Convert an EUPE checkpoint, in whichever layout, to a folder that `from_pretrained` loads.

    Args:
        checkpoint: The file or folder, see `load_checkpoint`.
        output: The folder to write.
        variant: Name of the model that it must be; by default it is recognised.
        keep_projectors: Keep the distillation adapters that some files carry, in `projectors.safetensors` beside the
            weights; by default they are dropped.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, FileExistsError, CheckpointError: As `load_checkpoint` and `save_model_folder` say.
    """
    loaded = load_checkpoint(checkpoint, variant)
    return save_model_folder(loaded, output, projector_writer(loaded) if keep_projectors else None)


# ---- writing ----


def convert_head(
    head: str | os.PathLike,
    task: str,
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    layers: Sequence[int] | None = None,
    variant: str | None = None,
    keep_projectors: bool = False,
) -> Path:
    """Convert a head of upstream's evaluation code, with its encoder, to a folder that `from_pretrained` loads.

    Args:
        head: File of the head, see `load_head`.
        task: "segmentation" makes an `EupeForSegmentation`, "depth" an `EupeForDepthEstimation`.
        checkpoint: The encoder, in any layout, see `load_checkpoint`.
        output: The folder to write.
        layers: Blocks or stages that the head reads, counted from 0; by default the last.
        variant: Name of the model that the encoder must be; by default it is recognised.
        keep_projectors: As in `convert_checkpoint`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, FileExistsError, CheckpointError, ValueError: As `load_head`, `load_checkpoint` and
            `save_model_folder` say.
    """
    loaded = load_head(head, task, load_checkpoint(checkpoint, variant), layers)
    return save_model_folder(loaded, output, projector_writer(loaded) if keep_projectors else None)


_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


class OptionError(ValueError):
    """Options that do not go together; the message calls them what the commands call them."""


@dataclass(frozen=True)
class Conversion:
    """A conversion that was done, and its proof.

    Args:
        source: What was read, with the head that was joined.
        output: The file or folder that was written.
        layout: Its layout.
        rows: Every tensor of the output, read again, against the source.
        notes: What was read, compared, kept and dropped, a line each; true where `is_equal`.
        result: What the output is, in one line.
    """

    source: Checkpoint
    output: Path
    layout: Layout
    rows: list[Row]
    notes: list[str]
    result: str

    @property
    def is_equal(self) -> bool:
        """Whether the output holds the values of the source; else nobody should use it."""
        return all(row.within(0) for row in self.rows)

    def lines(self) -> list[str]:
        """What to tell people: what was done, or which tensors differ."""
        if self.is_equal:
            return [*self.notes, self.result]
        return [format_table(self.rows, 0), f"{self.output} differs from its source: do not use it."]

    def values(self) -> dict[str, Any]:
        """The same by names, ready for JSON; of head and distillation adapters how many tensors the source has."""
        source = self.source
        return {
            "output": str(self.output), "layout": self.layout, "source_layout": source.layout,
            "model": source.variant.name if source.variant is not None else None,
            "head_tensors": len(source.head), "projector_tensors": len(source.projectors),
            **summary(self.rows, 0),
        }  # fmt: skip


def summary(rows: Sequence[Row], tolerance: float) -> dict[str, Any]:
    """A comparison in few values, ready for JSON.

    Args:
        rows: What was compared; at least one.
        tolerance: Largest absolute error that counts as the same.

    Returns:
        `is_equal`, the numbers of arrays `compared` and `within` the tolerance, `tolerance`, and the `max_abs_error`,
        `None` where it is no finite number.
    """
    within = sum(row.within(tolerance) for row in rows)
    errors = [row.max_abs_error for row in rows]
    largest = max(errors) if all(map(math.isfinite, errors)) else None
    return {
        "is_equal": within == len(rows), "compared": len(rows), "within": within, "tolerance": tolerance,
        "max_abs_error": largest,
    }  # fmt: skip


# ---- converting ----


def check_head_options(head: str | os.PathLike | None, task: str | None, layers: Sequence[int] | None) -> None:
    """Raise `OptionError` where what is said about a head is incomplete, or said of none."""
    if head and not task:
        raise OptionError(f"--head needs --task: {' or '.join(TASKS)}")
    if not head and (task or layers):
        raise OptionError("--task and --layers describe a head; they need --head FILE")


def _check_output(checkpoint: str | os.PathLike, output: str | os.PathLike, layout: Layout) -> None:
    read, written = Path(checkpoint).resolve(), Path(output).resolve()
    if read.is_relative_to(written) or (written.exists() and written.is_relative_to(read)):
        raise ValueError(f"{output} is part of the checkpoint itself, which is never replaced: give another output.")
    if layout != "raw" and Path(output).suffix in _FILE_SUFFIXES:
        raise ValueError(f"{output} is the name of a file, and layout {layout} is a folder: give the name of one.")


def convert(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    variant: str | None = None,
    head: str | os.PathLike | None = None,
    task: str | None = None,
    layers: Sequence[int] | None = None,
    keep_projectors: bool = False,
) -> Conversion:
    """Convert a checkpoint, in whichever layout, to a folder that `from_pretrained` loads, and compare every tensor.

    Args:
        checkpoint: The file or folder, see `load_checkpoint`.
        output: The folder to write.
        variant: Name of the model that it must be; by default it is recognised.
        head: A head of upstream's evaluation code: it and the encoder become one task model, see `load_head`.
        task: What the head was trained for, "segmentation" or "depth".
        layers: Blocks or stages that the head reads, counted from 0; by default the last.
        keep_projectors: Keep the distillation adapters that some files carry, see `convert_checkpoint`.

    Raises:
        OSError: Nothing to read, or `output` cannot be written.
        ValueError: No such checkpoint or head, or arguments that do not go together; the message says which.
    """
    check_head_options(head, task, layers)
    _check_output(checkpoint, output, "eupe")
    source = load_checkpoint(checkpoint, variant)
    notes = [f"Read {checkpoint}: {_described_encoder(source)}."]
    if head:
        source = load_head(head, task, source, layers)
        notes.append(f"Read {head}: a {task} head, {_described_head(source)}.")
    elif source.head:
        notes.append(f"{len(source.head)} tensors of the head of a task model: dropped.")
    _check_dtypes(source, checkpoint)
    save_model_folder(source, output, projector_writer(source) if keep_projectors else None)
    model_class = get_task(task).model_class if task else EupeModel
    written = model_class.from_pretrained(output, dtype="auto").state_dict()
    rows = compare_tensors(source.model_state, written)
    count = sum(tensor.numel() for tensor in written.values())
    notes.append(f"Compared {len(rows)} tensors, {count:,} values: all equal to the source (max abs difference 0).")
    if source.projectors:
        lost = "dropped (eupe convert --keep-projectors keeps them)"
        action = f"kept in {PROJECTOR_FILE}" if keep_projectors else lost
        notes.append(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    notes.append(f"The weights are under the {WEIGHTS_LICENSE['license_name']}: {WEIGHTS_LICENSE['license_link']}")
    result = f"Done: {model_class.__name__}.from_pretrained({str(output)!r}) loads it."
    return Conversion(source, Path(output), "eupe", rows, notes, result)


def _check_dtypes(source: Checkpoint, checkpoint: str | os.PathLike) -> None:
    dtypes = {tensor.dtype for tensor in source.state.values()}
    if len(dtypes) > 1:  # from_pretrained would change some of them
        raise ValueError(
            f"{checkpoint} holds tensors of several number formats ({', '.join(sorted(map(str, dtypes)))}), and a "
            "model has one: save all in the same."
        )


def _described_encoder(source: Checkpoint) -> str:
    name = source.variant.name if source.variant is not None else "an encoder of another size than the six"
    return f"{name}, layout {source.layout}"


def _described_head(source: Checkpoint) -> str:
    layers = ", ".join(str(index - 1) for index in source.config.out_indices)
    outputs, channels = source.head["head.linear.conv.weight"].shape[:2]
    return f"from {channels} channels of layers {layers} to {outputs}"


def convert_back(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    layout: Layout = "raw",
    head: str | os.PathLike | None = None,
    variant: str | None = None,
) -> Conversion:
    """Convert an encoder to the layout of the published file or of transformers' DINOv3, and compare every tensor.

    Args:
        checkpoint: The file or folder, in whichever layout, see `load_checkpoint`.
        output: "raw": the file to write, `.pt` or `.safetensors`; "dinov3": the folder.
        layout: "raw" or "dinov3".
        head: Where to write the head of the task model that `checkpoint` is, see `save_head`; by default it is left
            out.
        variant: Name of the model that it must be; by default it is recognised.

    Raises:
        OSError, ValueError: As of `convert`.
    """
    _check_output(checkpoint, output, layout)
    if head:
        _check_output(checkpoint, head, "raw")
        if Path(head).resolve() == Path(output).resolve():
            raise OptionError("--output and --head must be two files: the encoder's and the head's")
    source = load_checkpoint(checkpoint, variant)
    if head:
        save_head(source, head)
    save_layout(source, output, layout)
    written = load_checkpoint(output, config=source.config)
    rows = compare_tensors(source.state, written.state)
    if head:
        layers = [index - 1 for index in source.config.out_indices]
        rows += compare_tensors(source.head, load_head(head, raw_head(source)[1].name, written, layers).head)
    notes = [f"Compared {len(rows)} tensors: all equal to the source (max abs difference 0)."]
    if source.projectors:
        action = "written with the rest" if layout == "raw" else "left out, this layout has no place for them"
        notes.append(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    if source.head:
        action = f"written to {head}" if head else "left out (--head FILE writes them)"
        notes.append(f"{len(source.head)} tensors of the head: {action}.")
    result = f"Done: {output} holds the encoder in layout {layout}."
    return Conversion(source, Path(output), layout, rows, notes, result)


# ---- verifying ----


def verify(
    checkpoint: str | os.PathLike,
    against: str | os.PathLike | None = None,
    golden: str | os.PathLike | None = None,
    variant: str | None = None,
    device: str | torch.device | None = None,
) -> list[Row]:
    """Compare what an encoder computes with what another one does, or with what the original code did.

    Args:
        checkpoint: The encoder, in whichever layout, see `load_checkpoint`. Of a task model it is the encoder too.
        against: Another checkpoint; or
        golden: a file with recorded outputs, see `compare_with_golden`.
        variant: Name of the model that both must be; by default they are recognised.
        device: See `eupe_hf.loading.pick_device`.

    Returns:
        One row per output.

    Raises:
        OSError: Nothing to read.
        ValueError: No such checkpoint, or not one thing to compare with, or of another shape.
    """
    if (against is None) == (golden is None):
        raise OptionError("Give one thing to compare with: --against FILE_OR_DIR or --golden FILE.")
    place = pick_device(device)
    model = load_checkpoint(checkpoint, variant).build_model().to(place)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN computes convolutions in TF32
        if golden is not None:
            return compare_with_golden(model, golden)
        return compare_models(model, load_checkpoint(against, variant).build_model().to(place))
