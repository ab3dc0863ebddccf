# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Read and write EUPE weights in any of the three layouts of `layouts.py`.

Files and folders are written beside their place and moved into it when they are whole: an interrupted run leaves the
old content, or nothing.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe import EupeModel, EupePreTrainedModel
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.models.reading_eupe import CheckpointError, get_field, read_json
from eupe_hf.staging import naming_full_disk, staged_file, staged_folder
from eupe_hf.variants import VARIANTS, Variant, get_variant, variant_config

from .configurations import DINOV3_TYPES, check_dinov3_config, config_file, difference_to, dinov3_config, read_config
from .layouts import Layout, StateDict, describe, from_eupe, recognise, to_eupe
from .tensor_files import ENCODER_PREFIX, read_state_dict


# Distillation adapters to the teacher, which some published files still carry. They are not part of the encoder.
PROJECTOR_PREFIX = "projectors."
PROJECTOR_FILE = "projectors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Weights in this package's layout, with all that it takes to build the model and to write them back.

    Args:
        state: The encoder's tensors, by their names in `EupeModel`.
        config: The configuration, including rotary periods that differ from the formula.
        layout: The layout it was read in.
        variant: The published model whose shape it has; `None` for an encoder of another size.
        projectors: The distillation adapters, by their raw names.
        head: The head, by its names in the task model ("head.linear.conv.weight").
        task: Set by `upstream_heads.load_head`: encoder and head form the model of this task. `None` for an encoder.
        difference: In what an encoder of a published model's size is not that model.
    """

    state: StateDict
    config: EupeConfig
    layout: Layout
    variant: Variant | None
    projectors: StateDict
    head: StateDict = field(default_factory=dict)
    task: str | None = None
    difference: str | None = None

    @property
    def model_class(self) -> type[EupePreTrainedModel]:
        """`EupeModel`, or the class of `task`."""
        return TASK_MODELS[self.task] if self.task else EupeModel

    @property
    def model_state(self) -> StateDict:
        """The tensors by their names in a `model_class`."""
        if self.task is None:
            return self.state
        return {ENCODER_PREFIX + key: tensor for key, tensor in self.state.items()} | self.head

    def build_model(self) -> EupePreTrainedModel:
        """A `model_class` with these weights, in their dtype, in eval mode. It shares their memory."""
        with torch.device("meta"):
            model = self.model_class(self.config)
        model.load_state_dict(self.model_state, assign=True)
        return model.eval()


def load_checkpoint(
    path: str | os.PathLike, variant: str | None = None, config: EupeConfig | None = None
) -> Checkpoint:
    """Read an EUPE encoder from a file or folder in any of the three layouts.

    Args:
        path: See `read_state_dict`. In this package's layout, the `config.json` beside the weights gives the
            architecture. The head of a task model (`EupeForSegmentation`, ...) goes to `Checkpoint.head`.
        variant: Name of the model it must be; by default any of the six.
        config: The architecture of an encoder of another size than the six; overrides `variant`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: It is not an EUPE encoder, or not this one. The message says what it looks like, or which
            key is wrong.
    """
    path = Path(path)
    state = read_state_dict(path)
    projectors = {key: tensor for key, tensor in state.items() if key.startswith(PROJECTOR_PREFIX)}
    if (side_file := path / PROJECTOR_FILE).is_file():
        projectors |= read_state_dict(side_file)
    state = {key: tensor for key, tensor in state.items() if key not in projectors}
    state, head = _split_head(state)
    with _naming(path):
        layout, published = recognise(state)
    if config is None:
        wanted = published if variant is None else get_variant(variant)
        config = read_config(config_file(path), state) if layout == "eupe" else None
        # A damaged checkpoint (`published` is None) without a configuration passes: `to_eupe` names its bad keys.
        if wanted is not None and wanted is not published and (published is not None or config is not None):
            found = f"{published.name}, " if published is not None else ""
            raise CheckpointError(f"{path} holds {found}a {describe(state)}, not {wanted.name}.")
        if wanted is not None:
            config = config or variant_config(wanted.name)
        elif config is None:
            raise CheckpointError(
                f"{path} holds a {describe(state)}, which is not one of the six EUPE models ({', '.join(VARIANTS)}). "
                "For an encoder of another size, pass its configuration."
            )
        published = wanted
    if layout == "dinov3":
        check_dinov3_config(path, config)
    with _naming(path):
        ours, config = to_eupe(state, config, layout)
    if len(dtypes := sorted({str(tensor.dtype) for tensor in ours.values()})) > 1:
        raise CheckpointError(
            f"{path} holds tensors of several number formats ({', '.join(dtypes)}), and a model has one: save all in "
            "the same format."
        )
    difference = difference_to(published, config) if published is not None else None
    if published is not None and difference is not None:
        if variant is not None:
            raise CheckpointError(f"{path} is not {published.name}: {difference}.")
        difference = f"of the size of {published.name}, but {difference}"
        published = None
    return Checkpoint(ours, config, layout, published, projectors, head, difference=difference)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file to what its tensors are refused for."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _split_head(state: StateDict) -> tuple[StateDict, StateDict]:
    """Encoder and head of a task model, whose keys begin with "eupe." and "head."; otherwise `state` and nothing."""
    if not any(key.startswith(ENCODER_PREFIX) for key in state):
        return state, {}
    head = {key: tensor for key, tensor in state.items() if key.startswith("head.")}
    return {key.removeprefix(ENCODER_PREFIX): tensor for key, tensor in state.items() if key not in head}, head


# Takes the unfinished file or folder, to add to it or to check it. If it raises, the output stays as it was.
Finish = Callable[[Path], None]

# A folder with any other file is not ours to replace.
_OWN_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|model.*\.safetensors(\.index\.json)?|projectors\.safetensors|README\.md"
    r"|\w+_eupe\w*\.py"
)
# What people change by hand. The rest is made from the weights, or code.
_EDITABLE = ("README.md", IMAGE_PROCESSOR_NAME)
_CODE_BYTES = 300_000  # of the modelling files in a folder
_OWN_MODELS = (EupeConfig.model_type, *DINOV3_TYPES)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but one model as it is written here, and unchanged."""
    entries = sorted(entry.name for entry in folder.iterdir())
    file = folder / CONFIG_NAME
    found = get_field(read_json(file), "model_type", str, file) if CONFIG_NAME in entries else None
    ours = found in _OWN_MODELS
    foreign = [name for name in entries if not ours or not _OWN_FILES.fullmatch(name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(foreign[:3])}), which would be lost: give a new or empty folder."
        )
    if edited := [name for name in _EDITABLE if name in entries and not _is_as_written(folder / name)]:
        raise FileExistsError(
            f"{folder / edited[0]} was changed after it was written, and would be lost: move it away, or give a "
            "new or empty folder."
        )


def _is_as_written(file: Path) -> bool:
    """Whether a card or the configuration of an image processor is what `save_pretrained` writes beside this model."""
    config = read_config(file.parent / CONFIG_NAME)
    if config is None:  # of the DINOv3 layout, which has neither
        return False
    names = {task_model.__name__: task_model for task_model in TASK_MODELS.values()}
    model_class: type[EupePreTrainedModel] = names.get(next(iter(config.architectures or []), ""), EupeModel)
    with torch.device("meta"):
        model = model_class(config)
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.name == IMAGE_PROCESSOR_NAME:
        return text == model._default_processor().to_json_string()
    for name in ("", *(variant.repo_id for variant in VARIANTS.values())):  # the card alone says what it came from
        config.name_or_path = name
        if text == str(model._new_card()):
            return True
    return False


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn what is raised where a file can't be written, or grow, into an `OSError` that says so."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EFBIG:
            raise
        why, free = str(error).strip().splitlines()[0], shutil.disk_usage(output.absolute().parent).free
        raise OSError(f"{output} could not be written ({why}). {free:,} bytes are free on its disk.") from error


def _size(state: StateDict) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def save_model_folder(checkpoint: Checkpoint, output: str | os.PathLike, finish: Finish | None = None) -> Path:
    """Write a checkpoint as a folder that `from_pretrained` loads: weights, config, processor, code, card.

    Args:
        checkpoint: From `load_checkpoint` or `upstream_heads.load_head`.
        output: The folder, which is replaced as a whole. Also what is returned.
        finish: Called with the unfinished folder.

    Raises:
        FileExistsError: `output` is a file, or a folder with other files in it, or with a card or processor that was
            changed by hand.
        OSError: The disk is full, for example.
    """
    output = Path(output)
    with (
        naming_full_disk(output, _size(checkpoint.model_state) + _CODE_BYTES),
        staged_folder(output, _check_replaceable) as folder,
    ):
        with _writing(output):
            checkpoint.build_model().save_pretrained(folder)
        if finish:
            finish(folder)
    return output


def save_layout(
    checkpoint: Checkpoint, output: str | os.PathLike, layout: Layout, finish: Finish | None = None
) -> Path:
    """Write a checkpoint in any layout. Returns `output`.

    Args:
        checkpoint: From `load_checkpoint`.
        output: For "raw" the file, `.pt` or `.safetensors`, with the distillation adapters. For "dinov3" the folder,
            with the `config.json` of transformers' class. For "eupe" see `save_model_folder`.
        layout: The layout to write.
        finish: Called with the unfinished file or folder.

    Raises:
        CheckpointError: The layout cannot hold this checkpoint, see `from_eupe`.
        FileExistsError, IsADirectoryError: `output` is the wrong kind, or a folder with other files in it.
    """
    if layout == "eupe":
        return save_model_folder(checkpoint, output, finish)
    output = Path(output)
    tensors = from_eupe(checkpoint.state, checkpoint.config, layout)
    if layout == "raw":
        return save_tensors({**tensors, **checkpoint.projectors}, output, finish=finish)
    with naming_full_disk(output, _size(tensors)), staged_folder(output, _check_replaceable) as folder:
        with _writing(output):
            dinov3_config(checkpoint.config).save_pretrained(folder)
            save_file({k: t.contiguous() for k, t in tensors.items()}, folder / SAFE_WEIGHTS_NAME, {"format": "pt"})
        if finish:
            finish(folder)
    return output


def save_tensors(
    state: StateDict, output: str | os.PathLike, container: str | None = None, finish: Finish | None = None
) -> Path:
    """Write tensors as `.safetensors`, or in torch's format, there under the key `container`. Returns `output`."""
    output = Path(output)
    with naming_full_disk(output, _size(state)), staged_file(output) as file:
        with _writing(output):
            if output.suffix == ".safetensors":
                save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
            else:
                # clones: a view would drag its whole storage into the file
                tensors = {key: tensor.clone() for key, tensor in state.items()}
                torch.save({container: tensors} if container else tensors, file)
        if finish:
            finish(file)
    return output
