# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Refusing weights that contradict their configuration, or that are not finite floating point numbers.

transformers passes over weights that the model has no place for, and casts whatever it finds to the model's dtype.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.modeling_utils import PreTrainedModel, load_state_dict

from .configuration_eupe_sizes import check_numbers
from .reading_eupe import CheckpointError, read_header


_BLOCK = re.compile(r"(?:encoder|language_model)\.(?:layers\.(\d+)|stages\.(\d+)\.layers\.(\d+))\.")


class MismatchError(CheckpointError, RuntimeError):
    """Weights of other shapes than the model's. transformers raises a `RuntimeError` for them."""


class EupeWeightsMixin:
    """Checks of all that `from_pretrained` reads into memory. Stands before `transformers.PreTrainedModel`."""

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: list[str] | None, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        source, quantizer = load_config.pretrained_model_name_or_path, load_config.hf_quantizer
        expected = model.state_dict()
        if quantizer is None or not quantizer.pre_quantized:  # else the numbers are the quantizer's
            stored = _stored_dtypes(state_dict, checkpoint_files or [], load_config.weights_only)
            _refuse_other_numbers(source, stored, expected, f"{model.base_model_prefix}.")
        info, offloaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )
        if info.mismatched_keys and not load_config.ignore_mismatched_sizes:
            key, found, wanted = min(info.mismatched_keys, key=lambda mismatch: mismatch[0])
            raise MismatchError(
                f"The weights of {source or 'the state dict'} contradict its configuration: {key} is {list(found)} in "
                f"the weights, and {list(wanted)} by the configuration. Correct the configuration, or your options; "
                "ignore_mismatched_sizes=True makes a head of another size new."
            )
        refuse_not_finite(model, expected.keys() - info.missing_keys, source or "the state dict")
        return info, offloaded


def _stored_dtypes(state_dict: Mapping[str, Any] | None, files: Iterable[str], weights_only: bool) -> dict[str, Any]:
    """The dtypes of tensors as they are stored, by name."""
    if state_dict is not None:
        return {name: getattr(tensor, "dtype", None) for name, tensor in state_dict.items()}
    stored: dict[str, Any] = {}
    for file in map(str, files):
        if file.endswith(".safetensors"):
            found = {name: tensor.dtype for name, tensor in read_header(file).items()}
            if twice := sorted(stored.keys() & found.keys()):  # transformers would take the last
                raise CheckpointError(f"{file} holds {twice[0]!r}, and so does another file beside it: save it again.")
            stored |= found
        else:
            tensors = load_state_dict(file, map_location="meta", weights_only=weights_only)
            stored |= {name: getattr(tensor, "dtype", None) for name, tensor in tensors.items()}
    return stored


def _refuse_other_numbers(
    source: Any, stored: Mapping[str, Any], expected: Mapping[str, torch.Tensor], prefix: str
) -> None:
    for name, dtype in stored.items():
        # with and without the prefix: a task model loads an encoder's weights, and an encoder a task model's
        places = (name, prefix + name, name.removeprefix(prefix))
        place = next((place for place in places if place in expected), None)
        if place is not None and expected[place].is_floating_point():
            check_numbers({name: dtype}, source or "the state dict")


@torch.no_grad()
def refuse_not_finite(model: nn.Module, names: Iterable[str], source: Any) -> None:
    """Raise `CheckpointError` if one of these parameters and buffers is not finite.

    Packed, sharded and offloaded ones are passed over. The sum of each is a fifth of the time of looking at every
    value, and no more than the first forward pass gains by finding the weights in memory.
    """
    names = set(names)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_floating_point() and not tensor.is_meta
        if not is_plain or name not in names or math.isfinite(tensor.sum().item()):
            continue
        if bad := int((~tensor.isfinite()).sum()):  # none if only the sum was too large
            raise CheckpointError(
                f"{name} of {source} holds {bad} values that are NaN or infinite: its training diverged, or the file "
                "is damaged. Take an earlier checkpoint, or copy it again."
            )


def refuse_left_over(source: Any, keys: Iterable[str], config: Any) -> None:
    """Raise `CheckpointError` for weights of an encoder, or of a language model, that its configuration does not have.

    Args:
        source: Where they were read, for the message.
        keys: The names of these weights.
        config: Of the encoder or the language model.
    """
    if not (keys := sorted(keys, key=lambda key: [int(part) if part.isdigit() else -1 for part in key.split(".")])):
        return
    raise CheckpointError(
        f"The weights of {source} contradict its configuration: {len(keys)} of them have no place in it, among them "
        f"{keys[0]}{_blocks_in_words(keys, config)}. Correct the configuration; to load fewer blocks on purpose, pass "
        "output_loading_info=True."
    )


def _blocks_in_words(keys: Iterable[str], config: Any) -> str:
    matches = [match for key in keys if (match := _BLOCK.search(key))]
    if not matches:
        return ""
    *stage, last = max(tuple(int(number) for number in match.groups() if number) for match in matches)
    if not stage and last >= config.num_hidden_layers:
        return f": there are {last + 1} blocks, and num_hidden_layers is {config.num_hidden_layers}"
    if stage and (stage[0] >= len(config.depths) or last >= config.depths[stage[0]]):
        return f": there are {last + 1} blocks in stage {stage[0]}, and depths is {config.depths}"
    return ""


@contextmanager
def as_damaged(source: Any) -> Iterator[None]:
    """Turn what safetensors raises on a file that was cut short into a `CheckpointError`."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {source} are damaged or were cut short ({error}): copy or download them again."
        ) from error
