# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Read and write EUPE weights in any of the three layouts of `layouts.py`.

Files and folders are written beside their place and moved into it when they are whole: an interrupted run leaves the
old content, or nothing.
"""

import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import DINOv3ConvNextConfig, DINOv3ViTConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe import EupeModel, EupePreTrainedModel
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.staging import staged_file, staged_folder
from eupe_hf.variants import VARIANTS, Variant, get_variant, variant_config

from .layouts import CheckpointError, Layout, StateDict, describe, from_eupe, recognise, to_eupe


# Distillation adapters to the teacher, which some published files still carry. They are not part of the encoder.
PROJECTOR_PREFIX = "projectors."
PROJECTOR_FILE = "projectors.safetensors"

_ENCODER_PREFIX = f"{EupeModel.base_model_prefix}."  # in our own task models
# Other tools wrap a state dict in one of these keys, and put one of these prefixes before every name.
_CONTAINERS = ("model", "state_dict", "teacher")
_PREFIXES = ("module.", "backbone.", "teacher.", _ENCODER_PREFIX)
# What safetensors and torch's unpickler raise on files that were cut short or have changed bytes.
_DAMAGED = (
    SafetensorError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error, pickle.UnpicklingError,
)  # fmt: skip


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
    """

    state: StateDict
    config: EupeConfig
    layout: Layout
    variant: Variant | None
    projectors: StateDict
    head: StateDict = field(default_factory=dict)
    task: str | None = None

    @property
    def model_class(self) -> type[EupePreTrainedModel]:
        """`EupeModel`, or the class of `task`."""
        return TASK_MODELS[self.task] if self.task else EupeModel

    @property
    def model_state(self) -> StateDict:
        """The tensors by their names in a `model_class`."""
        if self.task is None:
            return self.state
        return {_ENCODER_PREFIX + key: tensor for key, tensor in self.state.items()} | self.head

    def build_model(self) -> EupePreTrainedModel:
        """A `model_class` with these weights, in their dtype, in eval mode. It shares their memory."""
        with torch.device("meta"):
            model = self.model_class(self.config)
        model.load_state_dict(self.model_state, assign=True)
        return model.eval()


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Read the tensors of a file or folder by name, on the CPU, out of containers and without prefixes.

    Args:
        path: A `.safetensors`, `.pt`, `.pth` or `.bin` file; or a folder with `model.safetensors`, or its index and
            shards. Pickles are always read with `weights_only=True`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: The file is truncated, is not a checkpoint, holds code, or holds no tensors.
    """
    path = Path(path)
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
        return _unwrap({key: tensor for shard in shards for key, tensor in _load(path / shard).items()}, path)
    path = path / SAFE_WEIGHTS_NAME if path.is_dir() else path
    return _unwrap(_load(path), path)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}. Give the file as downloaded (for example EUPE-ViT-S.pt), a .safetensors file, "
            f"or a folder that holds {SAFE_WEIGHTS_NAME}."
        )
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) > 8 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise CheckpointError(
            f"{path} is a text file (it begins {head[:40].decode()!r}), not a checkpoint. If an error page or a Git "
            "LFS pointer was saved in place of the download, download it again."
        )
    try:
        # By its content too, for unfinished files: the length of a header, then the header, which is JSON.
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return load_file(path)
        # Not memory-mapped: torch's old format cannot be, and the largest of our files has 350 MB.
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        # torch's own message recommends loading the file unsafely
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(
                f"{path} holds more than tensors ({found[1]}): reading it would run code from the file, "
                "which this package never does. Save the state dict alone: torch.save(model.state_dict(), FILE)."
            ) from error
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a {path.suffix or 'torch'} checkpoint. It is "
            "probably truncated or damaged: download it again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}.")
    return values


def _unwrap(loaded: Any, path: Path) -> StateDict:
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    found = type(loaded).__name__
    tensors = {}
    if isinstance(loaded, Mapping):
        found = ", ".join(map(str, list(loaded)[:5]))
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{', '.join(map(repr, _CONTAINERS))}; found {found or 'nothing'}."
        )
    return strip_prefixes(tensors, _PREFIXES)


def strip_prefixes(state: StateDict, prefixes: Sequence[str]) -> StateDict:
    """Remove every prefix that all keys share, repeatedly and in any order."""
    while prefix := next((p for p in prefixes if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


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
    layout, published = recognise(state)
    if config is None:
        wanted = published if variant is None else get_variant(variant)
        config = _config_beside(path) if layout == "eupe" else None
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
    ours, config = to_eupe(state, config, layout)
    return Checkpoint(ours, config, layout, published, projectors, head)


def _split_head(state: StateDict) -> tuple[StateDict, StateDict]:
    """Encoder and head of a task model, whose keys begin with "eupe." and "head."; otherwise `state` and nothing."""
    if not any(key.startswith(_ENCODER_PREFIX) for key in state):
        return state, {}
    head = {key: tensor for key, tensor in state.items() if key.startswith("head.")}
    return {key.removeprefix(_ENCODER_PREFIX): tensor for key, tensor in state.items() if key not in head}, head


def _config_beside(path: Path) -> EupeConfig | None:
    file = (path if path.is_dir() else path.parent) / CONFIG_NAME
    values = _read_json(file) if file.is_file() else {}
    if values.get("model_type") != EupeConfig.model_type:
        return None
    try:
        return EupeConfig(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} does not describe an EUPE encoder: {' '.join(str(error).split())}") from error


# Takes the unfinished file or folder, to add to it or to check it. If it raises, the output stays as it was.
Finish = Callable[[Path], None]

# A folder with any other file is not ours to replace.
_OWN_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|model.*\.safetensors(\.index\.json)?|projectors\.safetensors|README\.md"
    r"|\w+_eupe\w*\.py"
)
_OWN_MODELS = (EupeConfig.model_type, DINOv3ViTConfig.model_type, DINOv3ConvNextConfig.model_type)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but one model as it is written here."""
    entries = sorted(entry.name for entry in folder.iterdir())
    config = _read_json(folder / CONFIG_NAME) if CONFIG_NAME in entries else {}
    ours = config.get("model_type") in _OWN_MODELS
    foreign = [name for name in entries if not ours or not _OWN_FILES.fullmatch(name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(foreign[:3])}), which would be lost: give a new or empty folder."
        )


def save_model_folder(checkpoint: Checkpoint, output: str | os.PathLike, finish: Finish | None = None) -> Path:
    """Write a checkpoint as a folder that `from_pretrained` loads: weights, config, processor, code, card.

    Args:
        checkpoint: From `load_checkpoint` or `upstream_heads.load_head`.
        output: The folder, which is replaced as a whole. Also what is returned.
        finish: Called with the unfinished folder.

    Raises:
        FileExistsError: `output` is a file, or a folder with other files in it.
    """
    output = Path(output)
    with staged_folder(output, _check_replaceable) as folder:
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
    with staged_folder(output, _check_replaceable) as folder:
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
    with staged_file(output) as file:
        if output.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
        else:
            # clones: a view would drag its whole storage into the file
            tensors = {key: tensor.clone() for key, tensor in state.items()}
            torch.save({container: tensors} if container else tensors, file)
        if finish:
            finish(file)
    return output


def dinov3_config(config: EupeConfig) -> DINOv3ViTConfig | DINOv3ConvNextConfig:
    """The configuration with which transformers' DINOv3 class computes the features of this encoder."""
    names = ["num_channels", "image_size", "hidden_act", "layer_norm_eps", "initializer_range"]
    if config.backbone_type == "convnext":
        fields = {name: getattr(config, name) for name in (*names, "depths", "hidden_sizes")}
        scale = config.layerscale_value
        return DINOv3ConvNextConfig(architectures=["DINOv3ConvNextModel"], layer_scale_init_value=scale, **fields)
    names += ["patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_register_tokens", "pos_embed_rescale", "layerscale_value"]
    fields = {name: getattr(config, name) for name in names}
    return DINOv3ViTConfig(architectures=["DINOv3ViTModel"], rope_theta=float(config.rope_theta), **fields)
