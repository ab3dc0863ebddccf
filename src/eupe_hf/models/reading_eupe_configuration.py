# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The one place where the configuration of a file becomes a configuration of this package.

transformers takes the fields of a file as they are, of any type and name. Here each mistake in them is one error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import CONFIG_NAME

from .reading_eupe import CheckpointError, get_field
from .sharing_eupe import EupeNamesMixin


# Of transformers' own fields those that decide how a model is built and what its labels are.
LABEL_FIELDS: dict[str, Any] = {
    "architectures": list[str], "id2label": dict[str, str], "label2id": dict[str, int], "num_labels": int,
    "out_features": list[str], "out_indices": list[int], "problem_type": str,
}  # fmt: skip
_FIELDS: dict[str, Any] = {
    **LABEL_FIELDS, "model_type": str, "auto_map": dict, "attn_implementation": str, "quantization_config": dict,
    "output_attentions": bool, "tie_word_embeddings": bool,
}  # fmt: skip
_DTYPES = ("float64", "float32", "float16", "bfloat16")


class ConfigurationError(CheckpointError, StrictDataclassError):
    """A configuration that describes no model of this package. `@strict` raises a `StrictDataclassError` for them."""


class EupeFieldsMixin(EupeNamesMixin):
    """Reading configurations from files. Stands before `transformers.PreTrainedConfig`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, and by the names of the six models.

        Raises:
            OSError: There is no configuration, or it is not JSON.
            ValueError: It describes no model of this class. The message names the source and the field.
        """
        with _naming(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but fields of another type, or with the names of methods, are a `ValueError`."""
        with _naming(kwargs.get("name_or_path")):  # which the Auto classes pass
            _check_fields(cls, config_dict)
            parent: Any = super()
            return parent.from_dict(config_dict, **kwargs)


def _check_fields(config_class: type, values: Mapping[str, Any]) -> None:
    for name, kind in _FIELDS.items():
        get_field(values, name, kind, CONFIG_NAME)
    for name in values:  # transformers would set them
        if name.startswith("__") or callable(getattr(config_class, name, None)):
            raise CheckpointError(f"{CONFIG_NAME}: {name[:80]!r} is not a field of a configuration: remove it.")
    for name in ("dtype", "torch_dtype"):
        dtype = values.get(name)
        if dtype is not None and str(dtype).removeprefix("torch.") not in _DTYPES:
            raise CheckpointError(f"{CONFIG_NAME}: {name!r} must be {', '.join(_DTYPES)}, got {str(dtype)[:80]!r}.")
    quantization = values.get("quantization_config")
    if quantization is not None:
        get_field(quantization, "quant_method", str, f"{CONFIG_NAME}, 'quantization_config'", required=True)


@contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Turn what a wrong field raises anywhere into one error that names where the configuration comes from."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        if source is None or str(source) in str(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(f"The configuration of {source} cannot be used: {why[:1000]}") from error
