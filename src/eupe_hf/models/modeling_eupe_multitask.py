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
from .configuration_eupe_multitask import HEAD_FIELDS, EupeMultiTaskConfig
from .modeling_eupe import EupeBackbone, EupeBackboneOutput, EupePreTrainedModel
from .modeling_eupe_cards import head_card
from .modeling_eupe_depth import EupeForDepthEstimation
from .modeling_eupe_detection import EupeForObjectDetection
from .modeling_eupe_head import EupeTaskModel
from .modeling_eupe_image_classification import EupeForImageClassification
from .modeling_eupe_segmentation import EupeForSegmentation


TASK_MODELS: dict[str, type[EupeTaskModel]] = {
    "classification": EupeForImageClassification,
    "segmentation": EupeForSegmentation,
    "depth": EupeForDepthEstimation,
    "detection": EupeForObjectDetection,
}


# Fields of a configuration that say nothing about what an encoder computes for the heads.
_NOT_ARCHITECTURE = ("image_size", "return_class_token", "initializer_range", "layerscale_value")


@dataclass
class EupeMultiTaskOutput(ModelOutput):
    """Output of `EupeForMultiTask`.

    Args:
        loss: With labels: the sum of the heads' losses, each times its `loss_weight`.
        predictions: The output of each head that ran, by name: what its single-task model gives, with its own `loss`,
            ready for the image processor's `post_process_*`.
        hidden_states: As in `EupeModel.forward`.
        attentions: As in `EupeModel.forward`.
    """

    loss: torch.Tensor | None = None
    predictions: dict[str, ModelOutput] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EupeForMultiTask(EupePreTrainedModel):
    """One EUPE encoder, `self.eupe`, with any set of named heads, `self.heads`: several may be of one kind.

    `from_pretrained` takes a saved multi-task model, or an encoder with the heads to add:
    `EupeForMultiTask.from_pretrained("eupe-s", heads={"scene": {"task": "classification", "num_labels": 5}})`.
    `from_task_models` joins single-task models that share an encoder.

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
            self.heads[self._checked(name)] = self._new_head(name)
        self.post_init()

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        return {"AutoConfig": EupeMultiTaskConfig, "AutoModel": cls}

    @classmethod
    def from_task_models(
        cls,
        models: Mapping[str, EupeTaskModel | str | os.PathLike],
        loss_weights: Mapping[str, float] | None = None,
    ) -> "EupeForMultiTask":
        """Join single-task models that share an encoder. Encoder and heads are taken over, not copied.

        Args:
            models: Single-task models by the name that their head will have; or folders or Hub repositories of such.
            loss_weights: Factors of the losses, by name; 1 where nothing is said.

        Returns:
            The model.

        Raises:
            ValueError: No models, one that is no single-task model, or encoders that differ: the message names the
                first difference.
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
        with torch.device("meta"):
            model = cls(EupeMultiTaskConfig(encoder_config=first.config))
        model.config.name_or_path = first.config.name_or_path
        model.eupe.encoder, model.eupe.norm = first.eupe.encoder, first.eupe.norm
        for name, source in loaded.items():
            model._attach(name, source.head, _entry(source, (loss_weights or {}).get(name, 1.0)))
        return model.train(first.training)

    def freeze_backbone(self) -> None:
        """Train the heads alone: no gradient for the encoder, and nothing random in it, also in train mode."""
        self.eupe.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Train the encoder with the heads."""
        self.eupe.requires_grad_(True)

    def freeze_head(self, name: str) -> None:
        """Leave a head as it is: no gradient, no dropout, and its batch-norm statistics stay, also in train mode."""
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
            name: Its name.
            task: "classification", "segmentation", "depth" or "detection".
            **fields: What `EupeMultiTaskConfig` takes for a head: `num_labels` or `id2label`, `out_indices`, ...

        Raises:
            ValueError: The name is taken, or the configuration impossible.
        """
        self._refuse_taken(name)
        self.config.set_head(name, {"task": task, **fields})
        head = self._new_head(name)
        for module in reversed(list(head.modules())):
            self._init_weights(module)
        parameter = self.eupe.norm.weight
        self.heads[name] = head.to(parameter.device, parameter.dtype).train(self.training)

    def remove_head(self, name: str) -> None:
        """Remove a head. Raises `ValueError` if there is none of that name."""
        self._head(name)
        del self.heads[name]
        self.config.remove_head(name)

    def task_model(self, name: str) -> EupeTaskModel:
        """Single-task model of one head that shares encoder and head with this one. Its `save_pretrained` exports it.

        Args:
            name: Name of the head.

        Returns:
            `EupeForSegmentation` or whichever class has such heads.
        """
        head, config = self._head(name), self.config.head_config(name)
        config._attn_implementation = self.eupe.config._attn_implementation
        config.name_or_path = self.config.name_or_path
        with torch.device("meta"):
            model = TASK_MODELS[self.config.heads[name]["task"]](config)
        model.eupe.encoder, model.eupe.norm, model.head = self.eupe.encoder, self.eupe.norm, head
        return model.train(self.training)

    def save_head(self, name: str, save_directory: str | os.PathLike) -> None:
        """Save one head without the encoder: its weights, the configuration of its single-task model, and a card.

        `load_head` reads it. For a complete model that also loads without this class, save `task_model(name)`.

        Args:
            name: Name of the head.
            save_directory: The folder; made if need be.
        """
        head, config, folder = self._head(name), self.config.head_config(name), Path(save_directory)
        task_class = TASK_MODELS[self.config.heads[name]["task"]]
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
            name: The name that it gets here.
            source: Folder or Hub repository of a head (`save_head`) or of a single-task model, of which the head is
                taken.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

        Raises:
            ValueError: The name is taken, the source holds no head, or the head was made for an encoder of another
                architecture. Whether it was trained on the same weights cannot be seen from a head alone.
        """
        self._refuse_taken(name)
        config = EupeConfig.from_pretrained(source, **kwargs)
        task_class = _task_class(config, source)
        mine, other = _architecture(self.eupe.config), _architecture(config)
        differing = [key for key in mine if mine[key] != other[key]]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{source} is a head for another encoder: {key} is {other[key]} there and {mine[key]} here."
            )
        file = cached_file(source, SAFE_WEIGHTS_NAME, **kwargs)
        try:
            weights = load_state_dict_from_file(file)
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: it is damaged or was cut short; fetch it again.") from error
        state = {key.removeprefix("head."): tensor for key, tensor in weights.items() if key.startswith("head.")}
        with torch.device("meta"):
            head = task_class.head_class(config)
        expected = head.state_dict()
        wrong = sorted(
            {key for key in expected if key not in state or state[key].shape != expected[key].shape}
            | (state.keys() - expected.keys())
        )
        if wrong:
            raise ValueError(
                f"The head in {source} does not fit its own config.json: {len(wrong)} of its tensors are missing, not "
                f"known or misshapen, among them {', '.join(wrong[:3])}."
            )
        head.load_state_dict(state, assign=True)
        head = head.to(self.eupe.norm.weight).train(self.training)  # its device and dtype
        self._attach(name, head, _entry_of(config, task_class))

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
            labels: Labels by name of the head, each as its single-task model takes them. Heads without an entry give
                no loss; where only some images have labels for a task, give a list with `None` for the others. (With
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
        features = self.eupe(pixel_values, return_class_token=True, **kwargs)
        loss, predictions = None, {}
        for name in names:
            maps, tokens = self._read(features, self.config.heads[name]["out_indices"])
            prediction = self.heads[name](maps, tokens, tuple(pixel_values.shape[2:]), labels.get(name))
            predictions[name] = prediction
            if prediction.loss is not None:
                weighted = self.config.heads[name]["loss_weight"] * prediction.loss
                loss = weighted if loss is None else loss + weighted
        return EupeMultiTaskOutput(
            loss=loss,
            predictions=predictions,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )

    def _read(self, features: EupeBackboneOutput, indices: list[int]) -> tuple[tuple[torch.Tensor, ...], ...]:
        """The feature maps and global features that one head reads, of all that were made."""
        places = [self.eupe.out_indices.index(index) for index in indices]
        return tuple(features.feature_maps[i] for i in places), tuple(features.cls_tokens[i] for i in places)

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

    def _checked(self, name: str) -> str:
        if hasattr(nn.ModuleDict, name):
            raise ValueError(f"A head cannot be named {name!r}, which is a method of torch's modules.")
        return name

    def _refuse_taken(self, name: str) -> None:
        if name in self.heads:
            raise ValueError(f"There is a head {name!r} already; choose another name, or remove_head({name!r}) first.")
        self._checked(name)

    def _new_head(self, name: str) -> nn.Module:
        return TASK_MODELS[self.config.heads[name]["task"]].head_class(self.config.head_config(name))

    def _attach(self, name: str, head: nn.Module, entry: dict[str, Any]) -> None:
        self._refuse_taken(name)
        self.config.set_head(name, entry)
        self.heads[name] = head


def _task_model(model: EupeTaskModel | str | os.PathLike) -> EupeTaskModel:
    if isinstance(model, str | os.PathLike):
        return _task_class(EupeConfig.from_pretrained(model), model).from_pretrained(model)
    if not isinstance(model, tuple(TASK_MODELS.values())):
        allowed = ", ".join(task_class.__name__ for task_class in TASK_MODELS.values())
        raise ValueError(f"A model to join must be one of {allowed}, got {type(model).__name__}.")
    return model


def _task_class(config: EupeConfig, source: str | os.PathLike) -> type[EupeTaskModel]:
    """The single-task class that a configuration was saved from."""
    classes = {task_class.__name__: task_class for task_class in TASK_MODELS.values()}
    saved = (config.architectures or ["nothing"])[0]
    if saved not in classes:
        raise ValueError(f"{source} holds no task head: it was saved from {saved}, not from {', '.join(classes)}.")
    return classes[saved]


def _entry(model: EupeTaskModel, loss_weight: float) -> dict[str, Any]:
    return _entry_of(model.config, type(model)) | {"loss_weight": loss_weight}


def _entry_of(config: EupeConfig, task_class: type[EupeTaskModel]) -> dict[str, Any]:
    """The entry in `EupeMultiTaskConfig.heads` that a single-task configuration corresponds to."""
    (task,) = (task for task, known in TASK_MODELS.items() if issubclass(task_class, known))
    return {"task": task} | {key: getattr(config, key) for key in HEAD_FIELDS[task]}


def _architecture(config: EupeConfig) -> dict[str, Any]:
    """What two encoders must have in common so that one head fits both."""
    other = {*_NOT_ARCHITECTURE, *(field for fields in HEAD_FIELDS.values() for field in fields)}
    names = [name for name in EupeConfig.__annotations__ if name not in other and not name.startswith("_")]
    return {name: getattr(config, name) for name in names}


def _difference(first: EupeTaskModel, other: EupeTaskModel) -> str | None:
    """The first thing in which two encoders differ, in words."""
    mine, theirs = _architecture(first.config), _architecture(other.config)
    for name in mine:
        if mine[name] != theirs[name]:
            return f"{name} is {mine[name]} in one and {theirs[name]} in the other"
    tensors, others = first.eupe.state_dict(), other.eupe.state_dict()
    if differing := sorted(tensors.keys() ^ others.keys()):
        return f"one has {differing[0]}, the other has not"
    for name, tensor in tensors.items():
        there = others[name]
        if tensor.data_ptr() == there.data_ptr() and tensor.shape == there.shape:
            continue
        if tensor.dtype != there.dtype or not torch.equal(tensor, there.to(tensor.device)):
            return f"{name} differs"
    return None
