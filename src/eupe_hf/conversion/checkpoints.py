# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reading and writing EUPE weights, whichever of the three layouts of `layouts.py` they are in.

`load_checkpoint` reads and checks a file or folder; `save_model_folder` and `save_layout` write what it gave. Nothing
is ever written in place: a run that is interrupted leaves the old file or nothing.
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
from eupe_hf.staging import staged_file, staged_folder
from eupe_hf.variants import VARIANTS, Variant, get_variant, variant_config

from .layouts import CheckpointError, Layout, StateDict, describe, from_eupe, recognise, to_eupe


# Adapters to the teacher that some published files still carry; no part of the encoder.
PROJECTOR_PREFIX = "projectors."


PROJECTOR_FILE = "projectors.safetensors"


# What other tools wrap a state dict in: a container key, and a prefix of every key.
_CONTAINERS = ("model", "state_dict", "teacher")


_TASK_PREFIX = f"{EupeModel.base_model_prefix}."  # of the encoder in our own task models


_PREFIXES = ("module.", "backbone.", "teacher.", _TASK_PREFIX)


# What safetensors and torch's unpickler raise, between them, on files that are cut short or have bytes changed.
_DAMAGED = (
    SafetensorError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A state dict in this package's layout, with what is needed to build the model and to write it back.

    Args:
        state: Tensors by their names in `EupeModel`.
        config: The configuration, including rotary periods that differ from the formula.
        layout: The layout it was read in.
        variant: Which published model it has the shape of; `None` for another size (custom configurations).
        projectors: The distillation adapters that came with it, by their raw names.
        head: The head that came with it, by its names in the task model that was saved ("head.linear.conv.weight").
    """

    state: StateDict
    config: EupeConfig
    layout: Layout
    variant: Variant | None
    projectors: StateDict
    head: StateDict = field(default_factory=dict)

    @property
    def model_state(self) -> StateDict:
        """The tensors of `build_model`, by their names there."""
        return self.state

    def build_model(self) -> EupePreTrainedModel:
        """The encoder with these weights, in their dtype, in eval mode. It shares the memory of `state`."""
        with torch.device("meta"):
            model = EupeModel(self.config)
        model.load_state_dict(self.state, assign=True)
        return model.eval()


# ---- reading ----


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Read the tensors of a file or folder, unwrapped from containers and prefixes.

    Args:
        path: `.safetensors`, `.pt`, `.pth` or `.bin`; or a folder with `model.safetensors` (or its index and shards).
            Pickles are read with `weights_only=True` always.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: Nothing there; the message says what was looked for.
        CheckpointError: Truncated, not a checkpoint, a pickle with code in it, or without tensors.
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
        if path.suffix == ".safetensors":
            return load_file(path)
        # Not memory-mapped: files in torch's old format cannot be, and the largest of ours has 350 MB.
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        # torch's own message advises to load the file in the unsafe way
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(
                f"{path} holds other things than tensors ({found[1]}): reading them would run code from the file, "
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
        raise CheckpointError(f"{path} is no valid JSON ({error}): download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}.")
    return values


def _unwrap(loaded: Any, path: Path) -> StateDict:
    """State dict inside containers and behind prefixes."""
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    tensors = {}
    if isinstance(loaded, Mapping):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        found = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{', '.join(map(repr, _CONTAINERS))}; found {found or 'nothing'}."
        )
    return strip_prefixes(tensors, _PREFIXES)


def strip_prefixes(state: StateDict, prefixes: Sequence[str]) -> StateDict:
    """Take off, again and again, whichever of `prefixes` every key begins with."""
    while prefix := next((p for p in prefixes if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def load_checkpoint(
    path: str | os.PathLike, variant: str | None = None, config: EupeConfig | None = None
) -> Checkpoint:
    """Read an EUPE encoder from a file or folder in any of the three layouts.

    Args:
        path: See `read_state_dict`. For weights in this package's layout the `config.json` that lies with them gives
            the architecture. Of a task model (`EupeForSegmentation`, ...) the encoder is read, and `head` beside it.
        variant: Name of the model that it must be; by default any of the six.
        config: The architecture, for encoders of other sizes than the six; overrides `variant`.

    Returns:
        The checked checkpoint.

    Raises:
        FileNotFoundError: Nothing at `path`.
        CheckpointError: It is not (this) EUPE encoder; the message says what it looks like or which key is wrong.
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
        # without a configuration a damaged checkpoint, `published` None, goes on: its keys are reported one by one
        if wanted is not None and wanted is not published and (published is not None or config is not None):
            found = f"{published.name}, " if published is not None else ""
            raise CheckpointError(f"{path} holds {found}a {describe(state)}, not {wanted.name}.")
        published = wanted
        if config is None:
            if wanted is None:
                raise CheckpointError(
                    f"{path} holds a {describe(state)}, which is none of the six EUPE models "
                    f"({', '.join(VARIANTS)}). For an encoder of another size pass its configuration."
                )
            config = variant_config(wanted.name)
    ours, config = to_eupe(state, config, layout)
    return Checkpoint(ours, config, layout, published, projectors, head)


def _split_head(state: StateDict) -> tuple[StateDict, StateDict]:
    """Encoder and head of a task model, whose keys begin with "eupe." and "head."; else everything and nothing."""
    if not any(key.startswith(_TASK_PREFIX) for key in state):
        return state, {}
    head = {key: tensor for key, tensor in state.items() if key.startswith("head.")}
    return {key.removeprefix(_TASK_PREFIX): tensor for key, tensor in state.items() if key not in head}, head


def _config_beside(path: Path) -> EupeConfig | None:
    file = (path if path.is_dir() else path.parent) / CONFIG_NAME
    values = _read_json(file) if file.is_file() else {}
    if values.get("model_type") != EupeConfig.model_type:
        return None
    try:
        return EupeConfig(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} describes no EUPE encoder: {' '.join(str(error).split())}") from error


# ---- writing ----

# What a converted folder may hold. A folder with anything else is somebody's, and is not replaced.
_OWN_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|model.*\.safetensors(\.index\.json)?|projectors\.safetensors|README\.md"
    r"|(configuration|modeling|image_processing|post_processing)_eupe\w*\.py"
)


_OWN_MODELS = (EupeConfig.model_type, DINOv3ViTConfig.model_type, DINOv3ConvNextConfig.model_type)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder with anything in it but one model of the kind that is written here."""
    entries = sorted(entry.name for entry in folder.iterdir())
    config = _read_json(folder / CONFIG_NAME) if CONFIG_NAME in entries else {}
    ours = config.get("model_type") in _OWN_MODELS
    foreign = [name for name in entries if not ours or not _OWN_FILES.fullmatch(name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(foreign[:3])}): give a new or empty folder, so that nothing of "
            "yours is replaced."
        )


def save_model_folder(
    checkpoint: Checkpoint, output: str | os.PathLike, extend: Callable[[Path], None] | None = None
) -> Path:
    """Write a checkpoint as a folder that `from_pretrained` loads: weights, config, processor, code, card.

    Args:
        checkpoint: What `load_checkpoint` or `heads.load_head` gave.
        output: The folder; it is replaced as a whole, and only when everything is written.
        extend: Called with the unfinished folder, to add files that belong to it.

    Returns:
        The folder.
    """
    output = Path(output)
    with staged_folder(output, _check_replaceable) as folder:
        checkpoint.build_model().save_pretrained(folder)
        if extend is not None:
            extend(folder)
    return output


def projector_writer(checkpoint: Checkpoint) -> Callable[[Path], None]:
    """What `save_model_folder` takes as `extend` to keep the distillation adapters of a checkpoint."""

    def write(folder: Path) -> None:
        if checkpoint.projectors:
            save_file({k: t.contiguous() for k, t in checkpoint.projectors.items()}, folder / PROJECTOR_FILE)

    return write


def save_layout(checkpoint: Checkpoint, output: str | os.PathLike, layout: Layout) -> Path:
    """Write a checkpoint in another layout.

    Args:
        checkpoint: What `load_checkpoint` gave.
        output: "raw": the file to write, `.pt` or `.safetensors`. "dinov3": the folder, with the `config.json` of
            transformers' class. "eupe": the folder.
        layout: The layout to write.

    Returns:
        `output`.
    """
    if layout == "eupe":
        return save_model_folder(checkpoint, output)
    output = Path(output)
    tensors = from_eupe(checkpoint.state, checkpoint.config, layout)
    if layout == "raw":
        return save_tensors({**tensors, **checkpoint.projectors}, output)
    with staged_folder(output, _check_replaceable) as folder:
        dinov3_config(checkpoint.config).save_pretrained(folder)
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / SAFE_WEIGHTS_NAME, {"format": "pt"})
    return output


def save_tensors(state: StateDict, output: str | os.PathLike, container: str | None = None) -> Path:
    """Write tensors as one file: `.safetensors`, or any other suffix for torch's format, there under `container`."""
    output = Path(output)
    with staged_file(output) as file:
        if output.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
        else:
            # clones: a view would drag its whole storage into the file
            tensors = {key: tensor.clone() for key, tensor in state.items()}
            torch.save({container: tensors} if container else tensors, file)
    return output


def dinov3_config(config: EupeConfig) -> DINOv3ViTConfig | DINOv3ConvNextConfig:
    """Configuration with which transformers' DINOv3 class of the same family computes the same features."""
    names = ["num_channels", "image_size", "hidden_act", "layer_norm_eps", "initializer_range"]
    if config.backbone_type == "convnext":
        names += ["depths", "hidden_sizes"]
        fields = {name: getattr(config, name) for name in names}
        scale = config.layerscale_value
        return DINOv3ConvNextConfig(architectures=["DINOv3ConvNextModel"], layer_scale_init_value=scale, **fields)
    names += ["patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_register_tokens", "pos_embed_rescale", "layerscale_value"]
    fields = {name: getattr(config, name) for name in names}
    return DINOv3ViTConfig(architectures=["DINOv3ViTModel"], rope_theta=float(config.rope_theta), **fields)
