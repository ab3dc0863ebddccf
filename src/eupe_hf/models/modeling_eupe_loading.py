# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading that never leaves an encoder random: whole models, adapters with their base and head, quantized encoders."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any, TypeVar, cast

from torch import nn
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging

from .configuration_eupe_sizes import check_folder
from .modeling_eupe_adapter import Adapter
from .modeling_eupe_weights import EupeWeightsMixin, as_damaged, refuse_left_over
from .reading_eupe_adapter import FAULTS
from .sharing_eupe import EupeNamesMixin


_Model = TypeVar("_Model", bound="EupeLoadingMixin")
# Where quantizations list the parts to skip: bitsandbytes, and most of the others.
_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert")


class EupeLoadingMixin(EupeWeightsMixin):
    """`from_pretrained` and `load_adapter` of EUPE models. Stands before `transformers.PreTrainedModel`."""

    base_model: Any
    base_model_prefix: str
    named_parameters: Any

    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> _Model:
        """Load a model. Arguments as in `transformers.PreTrainedModel.from_pretrained`.

        A `quantization_config` quantizes the encoder and leaves the heads alone, unless it names the parts to skip.

        The folder or repository of an adapter loads its base, then the adapter. The head comes with an adapter that
        `eupe_hf.lora` saved; for one that peft alone saved, pass `num_labels` or what else the head had.

        Raises:
            OSError: The model, or the base of an adapter, was not found.
            ValueError: The checkpoint lacks weights of the encoder, which transformers would initialise at random, or
                has others than its configuration describes; new heads are initialised as usual.
                (`output_loading_info=True` lists such keys instead.) Or a tensor has another shape, holds integers or
                float8 numbers, or values that are not finite, as far as it is loaded into memory. Or
                `device_map` puts a new head, or the base of an adapter, on the disk. Or an adapter was trained on
                another class or architecture, its file is damaged, or a part of the model is neither in it nor in its
                base. Or the configuration has other sizes than the weights.
        """
        load: Any = cls._load
        return EupeNamesMixin.load_by_name(load, pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _load(cls, source: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("quantization_config") is not None:
            chosen = without_heads(kwargs["quantization_config"])
            kwargs["quantization_config"] = with_whole_names(chosen, cls.base_model_prefix)
        adapter = Adapter.find(source, kwargs)
        if adapter is not None:
            return cls._from_adapter(adapter, source, *args, **kwargs)
        output_loading_info = kwargs.pop("output_loading_info", False)
        check_folder(source, kwargs.get("subfolder"))
        parent: Any = super()
        with _held_load_report(), as_damaged(source):
            model, info = parent.from_pretrained(source, *args, output_loading_info=True, **kwargs)
            # with the loading info you see what is missing and what is left over, and decide yourself
            if source is not None and not output_loading_info:
                shapeless = {key for key, *_ in info["mismatched_keys"]}
                model._refuse_incomplete(source, info["missing_keys"] | shapeless)
                left_over = model._of_encoder(info["unexpected_keys"])
                refuse_left_over(source, left_over, model.base_model.config)
        freeze_unused(model)
        model._refuse_new_on_disk(info["missing_keys"])
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_adapter(cls, adapter: Adapter, base: Any, *args: Any, **kwargs: Any) -> Any:
        # Base first, adapter second: where transformers does both, it hides what the base lacks.
        base = base if adapter.is_resolved else adapter.base
        for key in ("adapter_kwargs", *(() if adapter.is_resolved else ("revision", "subfolder"))):
            kwargs.pop(key, None)
        adapter_name = kwargs.pop("adapter_name", "default")
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = cls.base_of_adapter(adapter, base, not output_loading_info, *args, **kwargs)
        model.load_adapter(adapter.source, adapter_name=adapter_name, adapter_kwargs=adapter.options)
        return (model, info) if output_loading_info else model

    @classmethod
    def base_of_adapter(
        cls, adapter: Adapter, base: str | os.PathLike, is_checked: bool, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The model that an adapter is for, with the head it was trained with but without the adapter.

        The weights come from `base`, with the further arguments of `from_pretrained`. With `is_checked` a base that
        lacks parts, or is of another architecture, is refused. The second result is the loading info, in which nothing
        that the adapter brings is missing.
        """
        adapted = adapter.model_config(cls)
        if adapted is not None:
            if kwargs.get("config") is not None:  # the base's, from the Auto classes
                adapted._attn_implementation = kwargs["config"]._attn_implementation
            kwargs["config"] = adapted
        load: Any = cls.from_pretrained
        try:
            with nullcontext() if adapted is None else _without_load_report():
                model, info = load(base, *args, output_loading_info=True, **kwargs)
        except (OSError, RuntimeError) as error:  # it is not there, or has tensors of other shapes
            raise adapter.explain(base, error) from error
        info["missing_keys"] = set(info["missing_keys"]) - adapter.tensors.keys()
        if is_checked:
            model._refuse_incomplete(base, info["missing_keys"])
            if adapted is not None:
                adapter.check_base(model, info)
        return model, info

    def _of_encoder(self, keys: Iterable[str]) -> list[str]:
        # a file of another class has the prefix where this one has none, or the other way round
        prefix = f"{self.base_model_prefix}."
        return sorted(key for key in keys if key.removeprefix(prefix).startswith(("encoder.", "norm.")))

    def _refuse_incomplete(self, source: str | os.PathLike, missing_keys: Iterable[str]) -> None:
        if missing := self._of_encoder(missing_keys):
            raise ValueError(
                f"{source} lacks {len(missing)} weights of the encoder, among them {', '.join(missing[:3])}: it is "
                "not a complete EUPE model in this layout, or its configuration is another's. Convert a raw or "
                "DINOv3-layout checkpoint first: eupe convert FILE DIR."
            )

    def _refuse_new_on_disk(self, missing_keys: Iterable[str]) -> None:
        # transformers offloads what it read from the checkpoint, and finds nothing for the rest at the first call
        parameters = dict(self.named_parameters())
        on_disk = sorted(key for key in missing_keys if key in parameters and parameters[key].is_meta)
        if on_disk:
            raise ValueError(
                f"{on_disk[0]} is not in the checkpoint, and device_map puts it on the disk: new parts must stay in "
                "memory. Raise max_memory, or pass a device_map that keeps them there, as {..., 'head': 'cpu'}."
            )

    def load_adapter(self, peft_model_id: str | os.PathLike | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter beside those that the model has. Arguments as in transformers.

        Raises:
            ValueError: The adapter does not fit the model, or its file is damaged: transformers would load what fits.
                Or parts of the model are offloaded: transformers would leave the adapter as it was built.
        """
        if any(parameter.is_meta for _, parameter in self.named_parameters()):
            raise ValueError(
                f"Parts of this {type(self).__name__} are offloaded, and an adapter needs them in memory. Raise "
                "max_memory. Or load the adapter without a device_map, merge it (eupe_hf.lora.load_peft_model(FOLDER)"
                ".merge_and_unload()) and save that."
            )
        parent: Any = super()
        load_config = kwargs.get("load_config")
        source = peft_model_id or getattr(load_config, "pretrained_model_name_or_path", None)
        if source is None:  # the weights are given, not read
            return parent.load_adapter(peft_model_id, *args, **kwargs)
        options = {**(getattr(load_config, "download_kwargs", None) or {}), **(kwargs.get("adapter_kwargs") or {})}
        adapter, model = Adapter(source, options), cast(nn.Module, self)
        adapter.check(model)
        name = kwargs.get("adapter_name") or (args[0] if args else None) or "default"
        before = set(getattr(self, "peft_config", ()))
        active = parent.active_adapters() if before else ()
        try:
            with _without_load_report():
                info = parent.load_adapter(peft_model_id, *args, **kwargs)
            missing = {key for key in info.missing_keys if f".{name}." in key}  # the others belong to other adapters
            adapter.load_magnitudes(model, missing)
            if missing:
                raise ValueError(
                    f"it lacks {len(missing)} tensors, among them {min(missing)}. It was trained on another model "
                    f"than this {type(self).__name__}, or with other targets than its adapter_config.json says."
                )
        except FAULTS as error:
            if name in set(getattr(self, "peft_config", ())) - before:
                _activate(model, name)  # peft deletes no other
                parent.delete_adapter(name)
                _activate(model, *active)
            raise adapter.unreadable(error) from error
        _activate(model, name)  # transformers switches the layers, and leaves the head that came with another adapter
        return info


def freeze_unused(model: nn.Module) -> None:
    """Freeze again what no part of a model uses: transformers' loading lets everything train."""
    for part in model.modules():
        if hasattr(part, "freeze_unused"):
            cast(Any, part).freeze_unused()


def _activate(model: nn.Module, *names: str) -> None:
    """Use adapters in all layers and heads that have them. What trains stays as it is."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in list(model.modules()):
        known = getattr(module, "modules_to_save", None) or getattr(module, "lora_A", None) or ()
        if chosen := [name for name in names if name in known]:
            cast(Any, module).set_adapter(chosen)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)


@contextmanager
def _held_load_report() -> Iterator[list[Any]]:
    """Hold back transformers' report of missing weights until the block has succeeded; a list of its records.

    What the block refuses is an error, not a line in a report.
    """
    held: list[Any] = []

    def is_not_report(record: Any) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    loggers = [logging.get_logger(f"transformers.{name}") for name in ("modeling_utils", "integrations.peft")]
    for logger in loggers:
        logger.addFilter(is_not_report)
    try:
        yield held
    finally:
        for logger in loggers:
            logger.removeFilter(is_not_report)
    for record in held:
        logging.get_logger(record.name).handle(record)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Drop that report, which counts what the adapter brings, and DoRA's magnitudes."""
    with _held_load_report() as held:
        yield
        held.clear()


def without_heads(quantization_config: Any) -> Any:
    """A copy of a quantization that leaves heads alone, unless it names the parts to skip.

    transformers skips the output layer of language models and no other head. `quantization_config` is what
    `from_pretrained` takes, for example a `transformers.BitsAndBytesConfig`.
    """
    chosen = _copy(quantization_config)
    for name in _SKIPPED:
        if getattr(chosen, name, ()) is None:
            setattr(chosen, name, ["head", "heads"])  # what models call the parts that are not the encoder
    return chosen


def with_whole_names(quantization_config: Any, prefix: str) -> Any:
    """A copy of a quantization that skips parts by their own names too, without `prefix`, the name of what holds them.

    transformers looks for a name at the start of the whole name of a layer, or at its end.
    """
    chosen = _copy(quantization_config)
    for name in _SKIPPED:
        parts = getattr(chosen, name, None) or []
        if isinstance(parts, list) and parts:
            further = [f"{prefix}.{part}" for part in parts if not part.startswith(f"{prefix}.")]
            setattr(chosen, name, list(dict.fromkeys([*parts, *further])))
    return chosen


def _copy(quantization_config: Any) -> Any:
    is_dict = isinstance(quantization_config, dict)
    return AutoQuantizationConfig.from_dict(quantization_config) if is_dict else copy(quantization_config)
