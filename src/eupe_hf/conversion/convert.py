# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversions that prove that no tensor changed, and comparisons of what two checkpoints compute.

`eupe convert`, `eupe verify` and the scripts in `conversion/` add options to these calls and print the results.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eupe_hf.loading import pick_device
from eupe_hf.models.configuration_eupe import FOLDER_FIELDS, WEIGHTS_LICENSE, EupeConfig
from eupe_hf.models.reading_eupe import check_path

from .checkpoints import PROJECTOR_FILE, Checkpoint, load_checkpoint, save_layout, save_model_folder, save_tensors
from .layouts import Layout, StateDict
from .upstream_heads import TASKS, load_head, raw_head, save_head
from .verification import Row, compare_models, compare_tensors, compare_with_golden, format_table


_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


class OptionError(ValueError):
    """Options that contradict each other. The message uses their names on the command line."""


@dataclass(frozen=True)
class Conversion:
    """A conversion and its proof.

    Args:
        source: What was read, with the head that was joined.
        output: The file or folder.
        layout: The layout of `output`.
        rows: Every tensor that was written, read again, against the source.
        notes: What was read, kept and dropped, a line each.
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
        """Whether every tensor came back bit for bit. If not, nothing was written."""
        return all(row.within(0) for row in self.rows)

    def prove(self, expected: StateDict, found: StateDict) -> None:
        """Compare tensors and keep the rows. Raises `ConversionError` if one differs."""
        self.rows.extend(compare_tensors(expected, found))
        if not self.is_equal:
            raise ConversionError(self)

    def lines(self) -> list[str]:
        """A report for people: what was done, or which tensors differ."""
        if self.is_equal:
            return [*self.notes, self.result]
        return [format_table(self.rows, 0), f"{self.output} would differ from its source: nothing was written."]

    def values(self) -> dict[str, Any]:
        """The same as values for JSON; `head_tensors` and `projector_tensors` count tensors of the source."""
        source = self.source
        return {
            "output": str(self.output), "layout": self.layout, "source_layout": source.layout,
            "model": source.variant.name if source.variant is not None else None,
            "head_tensors": len(source.head), "projector_tensors": len(source.projectors),
            **summary(self.rows, 0),
        }  # fmt: skip


class ConversionError(ValueError):
    """A proof that failed. Nothing was written; `conversion` holds the comparison."""

    def __init__(self, conversion: Conversion):
        super().__init__(conversion.lines()[-1])
        self.conversion = conversion


def summary(rows: Sequence[Row], tolerance: float) -> dict[str, Any]:
    """Sum up a comparison for JSON; `max_abs_error` is `None` unless it is finite."""
    within = sum(row.within(tolerance) for row in rows)
    errors = [row.max_abs_error for row in rows]
    largest = max(errors) if all(map(math.isfinite, errors)) else None
    return {
        "is_equal": within == len(rows), "compared": len(rows), "within": within, "tolerance": tolerance,
        "max_abs_error": largest,
    }  # fmt: skip


def check_head_options(head: str | os.PathLike | None, task: str | None, layers: Sequence[int] | None) -> None:
    """Raise `OptionError` if a head has no task, or if a task or layers have no head."""
    if head and not task:
        raise OptionError(f"--head needs --task: {' or '.join(TASKS)}")
    if not head and (task or layers):
        raise OptionError("--task and --layers describe a head; they need --head FILE")


def _check_output(checkpoint: str | os.PathLike, output: str | os.PathLike, layout: Layout) -> None:
    read, written = (Path(os.path.realpath(path)) for path in (checkpoint, check_path(output)))
    if read.is_relative_to(written) or (written.exists() and written.is_relative_to(read)):
        raise ValueError(f"{output} is part of the checkpoint itself, which is never replaced: give another output.")
    if layout != "raw" and Path(output).suffix in _FILE_SUFFIXES:
        raise ValueError(f"{output} is the name of a file, and layout {layout} is a folder: give the name of one.")


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    variant: str | None = None,
    head: str | os.PathLike | None = None,
    task: str | None = None,
    layers: Sequence[int] | None = None,
    keep_projectors: bool = False,
) -> Conversion:
    """Convert a checkpoint in any layout to a folder that `from_pretrained` loads, and prove that no tensor changed.

    The unfinished folder is loaded with `from_pretrained` and compared with the source, tensor by tensor. Only an
    exact copy takes the place of `output`.

    Args:
        checkpoint: The file or folder, see `load_checkpoint`.
        output: The folder to write.
        variant: Name of the model it must be; by default it is recognised.
        head: A head of upstream's evaluation code, see `load_head`. It and the encoder become one task model.
        task: What the head was trained for: "segmentation" or "depth".
        layers: Blocks or stages that the head reads, counted from 0; by default the last.
        keep_projectors: Keep the distillation adapters that some files carry, in `projectors.safetensors`.

    Returns:
        The conversion: its `output`, and every tensor's comparison in `rows`.

    Raises:
        OSError: There is nothing to read, or `output` cannot be written.
        ValueError: The checkpoint or head is not usable (`CheckpointError`), the arguments contradict each other
            (`OptionError`), or the proof failed (`ConversionError`). The message says which.
    """
    check_head_options(head, task, layers)
    _check_output(checkpoint, output, "eupe")
    source = load_checkpoint(checkpoint, variant)
    other = source.difference or "of another size than the six"
    name = source.variant.name if source.variant is not None else f"an encoder {other}"
    notes = [f"Read {checkpoint}: {name}, layout {source.layout}."]
    if head and task:
        source = load_head(head, task, source, layers)
        outputs, channels = source.head["head.linear.conv.weight"].shape[:2]
        read = ", ".join(str(layer) for layer in _layers(source))
        notes.append(f"Read {head}: a {task} head, from {channels} channels of layers {read} to {outputs}.")
    elif source.head:
        notes.append(f"{len(source.head)} tensors of the head of a task model: dropped.")
    result = f"Done: {source.model_class.__name__}.from_pretrained({str(output)!r}) loads it."
    done = Conversion(source, Path(output), "eupe", [], notes, result)

    def finish(folder: Path) -> None:
        if keep_projectors and source.projectors:
            save_tensors(source.projectors, folder / PROJECTOR_FILE)
        model = source.model_class.from_pretrained(folder, dtype="auto")
        done.prove(source.model_state, model.state_dict())
        if (field := _first_difference(source.config, model.config)) is not None:
            raise ValueError(f"{output} would not keep the setting {field!r} of {checkpoint}: nothing was written.")

    save_model_folder(source, output, finish)
    notes.append(_compared(done.rows))
    if source.projectors:
        lost = "dropped (eupe convert --keep-projectors keeps them)"
        action = f"kept in {PROJECTOR_FILE}" if keep_projectors else lost
        notes.append(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    notes.append(f"The weights are under the {WEIGHTS_LICENSE['license_name']}: {WEIGHTS_LICENSE['license_link']}")
    return done


def _first_difference(config: EupeConfig, saved: EupeConfig) -> str | None:
    """The first field in which a configuration did not survive its way to the disk."""
    before, after = (one.to_dict() for one in (config, saved))
    names = sorted({*before, *after} - {*FOLDER_FIELDS, "dtype"})
    return next((name for name in names if before.get(name) != after.get(name)), None)


def _layers(source: Checkpoint) -> list[int]:
    return [index - 1 for index in source.config.out_indices]


def _compared(rows: Sequence[Row]) -> str:
    values = sum(math.prod(row.shape) for row in rows)
    return f"Compared {len(rows)} tensors, {values:,} values: all equal to the source (max abs difference 0)."


def convert_head(
    checkpoint: str | os.PathLike,
    head: str | os.PathLike,
    output: str | os.PathLike,
    *,
    task: str,
    layers: Sequence[int] | None = None,
    variant: str | None = None,
    keep_projectors: bool = False,
) -> Conversion:
    """`convert_checkpoint` with a head of upstream's evaluation code, for code that always has one."""
    return convert_checkpoint(
        checkpoint, output, variant=variant, head=head, task=task, layers=layers, keep_projectors=keep_projectors
    )


def convert_to_layout(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    layout: Layout = "raw",
    variant: str | None = None,
    head: str | os.PathLike | None = None,
) -> Conversion:
    """Convert an encoder to the published layout or to that of transformers' DINOv3, and prove that no tensor changed.

    The proof is that of `convert_checkpoint`: what differs from the source is not written.

    Args:
        checkpoint: The file or folder, in any layout, see `load_checkpoint`.
        output: For "raw" the file to write, `.pt` or `.safetensors`; for "dinov3" the folder.
        layout: "raw" or "dinov3".
        variant: Name of the model it must be; by default it is recognised.
        head: Where to write the head of a task model, see `save_head`; by default it is left out.

    Raises:
        OSError, ValueError: As in `convert_checkpoint`.
    """
    _check_output(checkpoint, output, layout)
    if head:
        _check_output(checkpoint, head, "raw")
        if Path(head).resolve() == Path(output).resolve():
            raise OptionError("--output and --head must be two files: the encoder's and the head's")
    source = load_checkpoint(checkpoint, variant)
    notes: list[str] = []
    result = f"Done: {output} holds the encoder in layout {layout}."
    done = Conversion(source, Path(output), layout, [], notes, result)

    def prove_head(file: Path) -> None:
        done.prove(source.head, load_head(file, raw_head(source)[1], source, _layers(source)).head)

    def finish(path: Path) -> None:
        done.prove(source.state, load_checkpoint(path, config=source.config).state)
        if head:
            save_head(source, head, prove_head)

    save_layout(source, output, layout, finish)
    notes.append(_compared(done.rows))
    if source.projectors:
        action = "written with the rest" if layout == "raw" else "left out, this layout has no place for them"
        notes.append(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    if source.head:
        action = f"written to {head}" if head else "left out (--head FILE writes them)"
        notes.append(f"{len(source.head)} tensors of the head: {action}.")
    return done


def verify(
    checkpoint: str | os.PathLike,
    against: str | os.PathLike | None = None,
    *,
    golden: str | os.PathLike | None = None,
    variant: str | None = None,
    device: str | torch.device | None = None,
) -> list[Row]:
    """Compare what an encoder computes with another checkpoint, or with recorded outputs: one row per output.

    Args:
        checkpoint: The encoder, in any layout, see `load_checkpoint`. Of a task model, its encoder.
        against: Another checkpoint.
        golden: Instead of `against`: a file with recorded outputs, see `compare_with_golden`.
        variant: Name of the model that both must be; by default they are recognised.
        device: See `eupe_hf.loading.pick_device`.

    Raises:
        OSError: There is nothing to read.
        ValueError: A checkpoint is not usable, the two have other shapes, or not exactly one of `against` and
            `golden` was given.
    """
    if (against is not None and golden is not None) or against is golden:
        raise OptionError("Give one thing to compare with: --against FILE_OR_DIR or --golden FILE.")
    place = pick_device(device)
    model = load_checkpoint(checkpoint, variant).build_model().to(place)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN computes convolutions in TF32
        if against is None:
            return compare_with_golden(model, golden)
        return compare_models(model, load_checkpoint(against, variant).build_model().to(place))
