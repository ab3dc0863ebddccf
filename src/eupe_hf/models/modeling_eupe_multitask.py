# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Several tasks from one pass: one EUPE encoder with any set of named heads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import SAFE_WEIGHTS_NAME, ModelOutput, TransformersKwargs, cached_file
from transformers.utils.generic import can_return_tuple

from .configuration_eupe import EupeConfig
from .configuration_eupe_multitask import EupeMultiTaskConfig
from .modeling_eupe import EupeBackbone
from .modeling_eupe_cards import head_card
from .modeling_eupe_head import EupeModelWithHeads, EupeTaskModel
from .modeling_eupe_tasks import TASK_MODELS, saved_task_class


# Fields of a configuration that do not change what an encoder computes for the heads.
_NOT_ARCHITECTURE = {"image_size", "return_class_token", "initializer_range", "layerscale_value", "drop_path_rate"}
_NOT_ARCHITECTURE |= {field for task_class in TASK_MODELS.values() for field in task_class.head_fields}


@dataclass
class EupeMultiTaskOutput(ModelOutput):
    """Output of `EupeForMultiTask`.

    Args:
        loss: With labels: the sum of the heads' losses, each times its `loss_weight`.
        predictions: By name of the head the output of its single-task model, for the image processor's
            `post_process_*`.
        hidden_states: On request, as in `EupeModel`.
        attentions: On request, as in `EupeModel`.
    """

    loss: torch.Tensor | None = None
    predictions: dict[str, ModelOutput] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EupeForMultiTask(EupeModelWithHeads):
    """One EUPE encoder, `self.eupe`, with any set of named heads, `self.heads`; several may share a task.

    `from_pretrained` takes a saved multi-task model, or an encoder and the `heads` to add, as `EupeMultiTaskConfig`
    does. `from_task_models` joins single-task models that share an encoder.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeForMultiTask, EupeMultiTaskConfig, variant_config

    >>> heads = {"scene": {"task": "classification", "num_labels": 5}, "depth": {"task": "depth"}}
    >>> config = EupeMultiTaskConfig(encoder_config=variant_config("eupe-t"), heads=heads)
    >>> model = EupeForMultiTask(config).eval()  # random weights
    >>> predictions = model(torch.zeros(1, 3, 64, 64)).predictions
    >>> predictions["scene"].logits.shape, predictions["depth"].predicted_depth.shape
    (torch.Size([1, 5]), torch.Size([1, 4, 4]))
    >>> list(model(torch.zeros(1, 3, 64, 64), tasks=["depth"]).predictions)
    ['depth']

    ```
    """

    config_class = EupeMultiTaskConfig

    def __init__(self, config: EupeMultiTaskConfig):
        super().__init__(config)
        self.eupe = EupeBackbone(config.encoder)
        self.heads = nn.ModuleDict()
        for name in config.heads:
            self._check_new_name(name)
            self.heads[name] = self._new_head(name)
        self.post_init()

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        return {"AutoConfig": EupeMultiTaskConfig, "AutoModel": cls}

    @classmethod
    def from_task_models(
        cls, models: Mapping[str, EupeTaskModel | str | os.PathLike], loss_weights: Mapping[str, float] | None = None
    ) -> "EupeForMultiTask":
        """Join single-task models that share an encoder. The new model holds their encoder and heads, not copies.

        Args:
            models: Single-task models, their folders or Hub repositories, by the name that the head will have.
            loss_weights: Factors of the losses by name, 1 by default.

        Raises:
            ValueError: No models, a model of another class, or encoders that differ; the message names the first
                difference.
        """
        loaded = {name: _task_model(model) for name, model in models.items()}
        if not loaded:
            raise ValueError("from_task_models needs at least one model, as {name: model}.")
        first_name, first = next(iter(loaded.items()))
        for name, other in loaded.items():
            if difference := _difference(first, other):
                raise ValueError(
                    f"The models {first_name!r} and {name!r} do not share an encoder: {difference}. One encoder can "
                    "serve all heads only if they were trained on it with freeze_backbone(), or jointly."
                )
        model = cls._on_encoder_of(first, EupeMultiTaskConfig(encoder_config=first.config))
        for name, source in loaded.items():
            weight = (loss_weights or {}).get(name, 1.0)
            model._attach(name, source.head, _entry(type(source), source.config, loss_weight=weight))
        return model.train(first.training)

    def freeze_head(self, name: str) -> None:
        """Keep a head as it is: no gradient, no dropout, fixed batch-norm statistics, also in train mode."""
        self._head(name).requires_grad_(False).eval()

    def unfreeze_head(self, name: str) -> None:
        """Train a head again."""
        self._head(name).requires_grad_(True).train(self.training)

    def train(self, mode: bool = True) -> "EupeForMultiTask":
        """As in torch; frozen heads stay in eval mode."""
        super().train(mode)
        for head in self.heads.values():
            if not any(parameter.requires_grad for parameter in head.parameters()):
                head.eval()
        return self

    def add_head(self, name: str, task: str, **fields: Any) -> None:
        """Add a new head, to be trained.

        Args:
            name: Name of the head.
            task: "classification", "segmentation", "depth" or "detection".
            **fields: Other entries of a head in `EupeMultiTaskConfig`: `num_labels`, `out_indices`, ...

        Raises:
            ValueError: The name is taken, or the configuration impossible.
        """
        self._check_new_name(name)
        self.config.set_head(name, {"task": task, **fields})
        self.eupe.freeze_unused()
        head = self._new_head(name)
        for module in reversed(list(head.modules())):
            self._init_weights(module)
        parameter = self.eupe.norm.weight
        self.heads[name] = head.to(parameter.device, parameter.dtype).train(self.training)

    def remove_head(self, name: str) -> None:
        """Remove a head. Raises `ValueError` if no head has this name."""
        self._head(name)
        del self.heads[name]
        self.config.remove_head(name)
        self.eupe.freeze_unused()

    def task_model(self, name: str) -> EupeTaskModel:
        """The single-task model of a head, for instance to save it. It shares encoder and head with this model."""
        head, config = self._head(name), self.config.head_config(name)
        config._attn_implementation = self.eupe.config._attn_implementation
        model = self._task_class(name)._on_encoder_of(self, config)
        model.head = head
        return model.train(self.training)

    def save_head(self, name: str, save_directory: str | os.PathLike) -> None:
        """Save a head without the encoder, for `load_head`: its weights, a configuration and a card.

        For a complete model that loads without this class, save `task_model(name)`.
        """
        head, config, folder = self._head(name), self.config.head_config(name), Path(save_directory)
        task_class = self._task_class(name)
        config.architectures, config.name_or_path = [task_class.__name__], self.config.name_or_path
        config.save_pretrained(folder)
        tensors = {f"head.{key}": tensor.detach().contiguous() for key, tensor in head.state_dict().items()}
        with TemporaryDirectory(dir=folder) as scratch:  # a partial file never replaces a good one
            save_torch_state_dict(tensors, scratch)
            (Path(scratch) / SAFE_WEIGHTS_NAME).replace(folder / SAFE_WEIGHTS_NAME)
        if not (folder / "README.md").exists():
            head_card(task_class, config, name).save(folder / "README.md")

    def load_head(self, name: str, source: str | os.PathLike, **kwargs: Any) -> None:
        """Add a head that was trained elsewhere on the same encoder.

        Args:
            name: Its name in this model.
            source: Folder or Hub repository of a head (`save_head`) or of a single-task model.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

        Raises:
            ValueError: The name is taken, the source holds no head, or the head belongs to an encoder of another
                architecture. A head does not say on which weights it was trained.
        """
        self._check_new_name(name)
        config = EupeConfig.from_pretrained(source, **kwargs)
        task_class = _saved_task_class(config, source)
        if key := _differing_field(config, self.eupe.config):
            there, here = getattr(config, key), getattr(self.eupe.config, key)
            raise ValueError(f"{source} is a head for another encoder: {key} is {there} there and {here} here.")
        config = task_class.complete_config(config)
        with torch.device("meta"):
            head = task_class.head_class(config)
        head.load_state_dict(_head_weights(source, head, **kwargs), assign=True)
        head = head.to(self.eupe.norm.weight).train(self.training)  # its device and dtype
        self._attach(name, head, _entry(task_class, config))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        tasks: Sequence[str] | None = None,
        labels: Mapping[str, Any] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EupeMultiTaskOutput:
        """Run the encoder once, and the heads on its features.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            tasks: Names of the heads to run; default all.
            labels: Labels by name of the head, as its single-task model takes them. Heads without an entry have no
                loss. If only some images have labels for a head, give a list with `None` for the others. (With
                `DistributedDataParallel`, heads that some batches leave out need `ddp_find_unused_parameters`.)
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `predictions` by name of the head; `loss`, their weighted sum, with labels.

        Raises:
            ValueError: No heads, an unknown name, or labels that a head refuses.
        """
        names = self._known(self.config.heads if tasks is None else tasks, "tasks")
        labels = {} if labels is None else labels
        self._known(labels, "labels")
        for extra in ("output_hidden_states", "output_attentions"):  # the encoder reads a configuration of its own
            if kwargs.get(extra) is None and getattr(self.config, extra):
                kwargs[extra] = getattr(self.config, extra)
        read = sorted({index for name in names for index in self.config.heads[name]["out_indices"]})
        features = self.eupe(pixel_values, return_class_token=True, stages=read, **kwargs)
        stages = zip(features.feature_maps, features.cls_tokens or (), strict=True)
        by_index = dict(zip(read, stages, strict=True))
        loss, predictions = None, {}
        for name in names:
            maps, tokens = zip(*(by_index[i] for i in self.config.heads[name]["out_indices"]), strict=True)
            prediction = self.heads[name](maps, tokens, tuple(pixel_values.shape[2:]), labels.get(name))
            predictions[name] = prediction
            if prediction.loss is not None:
                if problem := self.heads[name].config.problem_type:  # of the labels, to be saved
                    self.config.heads[name]["problem_type"] = problem
                weighted = self.config.heads[name]["loss_weight"] * prediction.loss
                loss = weighted if loss is None else loss + weighted
        states, attentions = features.hidden_states, features.attentions
        return EupeMultiTaskOutput(loss=loss, predictions=predictions, hidden_states=states, attentions=attentions)

    def _known(self, names: Any, what: str) -> list[str]:
        if isinstance(names, str) or (what == "labels" and not isinstance(names, Mapping)):
            form = "a mapping from names of heads to labels" if what == "labels" else "a list of names"
            raise ValueError(f"{what} must be {form}, got {type(names).__name__}.")
        unknown = [str(name) for name in names if name not in self.heads]
        if unknown or not self.heads:
            has = f"the model has {', '.join(self.heads)}" if self.heads else "the model has none: add_head adds one"
            raise ValueError(f"There is no head {', '.join(unknown) or 'to run'}; {has}.")
        return list(names)

    def _head(self, name: str) -> nn.Module:
        return self.heads[self._known([name], "tasks")[0]]

    def _task_class(self, name: str) -> type[EupeTaskModel]:
        return TASK_MODELS[self.config.heads[name]["task"]]

    def _new_head(self, name: str) -> nn.Module:
        return self._task_class(name).head_class(self.config.head_config(name))

    def _check_new_name(self, name: str) -> None:
        if name in self.heads:
            raise ValueError(f"There is a head {name!r} already; choose another name, or remove_head({name!r}) first.")
        if hasattr(nn.ModuleDict, name):
            raise ValueError(f"A head cannot be named {name!r}, which is a method of torch's modules.")

    def _attach(self, name: str, head: nn.Module, entry: dict[str, Any]) -> None:
        self._check_new_name(name)
        self.config.set_head(name, entry)
        self.eupe.freeze_unused()
        self.heads[name] = head


def _task_model(model: EupeTaskModel | str | os.PathLike) -> EupeTaskModel:
    if isinstance(model, str | os.PathLike):
        return _saved_task_class(EupeConfig.from_pretrained(model), model).from_pretrained(model)
    if not isinstance(model, EupeTaskModel):
        raise ValueError(f"A model to join must be one of {_names()}, got {type(model).__name__}.")
    return model


def _names() -> str:
    return ", ".join(task_class.__name__ for task_class in TASK_MODELS.values())


def _saved_task_class(config: EupeConfig, source: str | os.PathLike) -> type[EupeTaskModel]:
    if (task_class := saved_task_class(config)) is None:
        saved = (config.architectures or ["nothing"])[0]
        raise ValueError(f"{source} holds no task head: it was saved from {saved}, not from {_names()}.")
    return task_class


def _entry(task_class: type[EupeTaskModel], config: EupeConfig, **rest: Any) -> dict[str, Any]:
    """The entry in `EupeMultiTaskConfig.heads` that a single-task configuration corresponds to."""
    return {"task": task_class.task, **{key: getattr(config, key) for key in task_class.head_fields}, **rest}


def _head_weights(source: str | os.PathLike, head: nn.Module, **kwargs: Any) -> dict[str, torch.Tensor]:
    """The saved tensors of a head, checked against one that has the shapes."""
    file = cached_file(source, SAFE_WEIGHTS_NAME, **kwargs)
    try:
        weights = load_state_dict_from_file(file)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: it is damaged or was cut short; fetch it again.") from error
    state = {key.removeprefix("head."): tensor for key, tensor in weights.items() if key.startswith("head.")}
    shapes = [{key: tensor.shape for key, tensor in tensors.items()} for tensors in (state, head.state_dict())]
    if wrong := sorted({key for key, _ in shapes[0].items() ^ shapes[1].items()}):
        raise ValueError(
            f"The head in {source} does not fit its own config.json: {len(wrong)} of its tensors are missing, not "
            f"known or misshapen, among them {', '.join(wrong[:3])}."
        )
    return state


def _differing_field(config: EupeConfig, other: EupeConfig) -> str | None:
    """The first field that one head for both encoders would need to be equal."""
    names = (name for name in EupeConfig.__annotations__ if not name.startswith("_") and name not in _NOT_ARCHITECTURE)
    return next((name for name in names if getattr(config, name) != getattr(other, name)), None)


def _difference(first: EupeTaskModel, other: EupeTaskModel) -> str | None:
    """The first thing in which two encoders differ, in words."""
    if name := _differing_field(first.config, other.config):
        return f"{name} is {getattr(first.config, name)} in one and {getattr(other.config, name)} in the other"
    tensors, others = first.eupe.state_dict(), other.eupe.state_dict()
    if differing := sorted(tensors.keys() ^ others.keys()):
        return f"only one of them has {differing[0]}"
    for name, tensor in tensors.items():
        there = others[name]
        if tensor.data_ptr() == there.data_ptr() and tensor.shape == there.shape:
            continue
        if tensor.dtype != there.dtype or not torch.equal(tensor, there.to(tensor.device)):
            return f"{name} differs"
    return None
