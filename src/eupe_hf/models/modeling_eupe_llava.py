# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE as the vision tower of transformers' LLaVA: tower, projector and any causal language model."""

import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_eupe_llava import EupeLlavaConfig
from .configuration_eupe_sizes import check_folder
from .modeling_eupe import EupeModel
from .modeling_eupe_cards import llava_card
from .modeling_eupe_llava_joining import EupeLlavaJoiningMixin
from .modeling_eupe_llava_projector import EupeLlavaProjector
from .modeling_eupe_loading import freeze_unused, with_whole_names
from .modeling_eupe_saving import EupeSavingMixin
from .modeling_eupe_weights import EupeWeightsMixin, as_damaged, refuse_left_over
from .processing_eupe_llava import EupeLlavaProcessor


_Model = TypeVar("_Model", bound="EupeLlavaPreTrainedModel")


class EupeLlavaPreTrainedModel(EupeWeightsMixin, EupeSavingMixin, LlavaPreTrainedModel):
    """Loading that leaves nothing random and saving that is complete, for both VLM classes."""

    config_class = EupeLlavaConfig
    config: EupeLlavaConfig

    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> _Model:
        """Loads a model, or an adapter with its base. Arguments as in transformers.

        Raises:
            OSError: The model, or the base of an adapter, was not found.
            ValueError: Weights are missing, which transformers would initialise at random, or have no place in the
                configuration. With `output_loading_info=True` the info lists them instead. Or a tensor has another
                shape, or holds what is not a finite floating point number.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = with_whole_names(kwargs["quantization_config"], cls.base_model_prefix)
        output_loading_info = kwargs.pop("output_loading_info", False)
        source: Any = pretrained_model_name_or_path
        check_folder(source, kwargs.get("subfolder"))
        with as_damaged(source):
            model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        if source is not None and not output_loading_info:
            left_over = info["unexpected_keys"]
            of_text = {key for key in left_over if re.search(r"language_model\.layers\.\d+\.", key)}
            of_images = {key for key in left_over if re.search(r"vision_tower\.|multi_modal_projector\.", key)}
            refuse_left_over(source, of_text, model.config.text_config)
            refuse_left_over(source, of_images, model.config.vision_config)
        freeze_unused(model)
        missing = sorted(info["missing_keys"])
        if missing and source is not None and not output_loading_info:
            raise ValueError(
                f"{source} lacks {len(missing)} weights of {cls.__name__}, among them "
                f"{', '.join(missing[:3])}. from_vision_text joins an encoder and a language model."
            )
        return cast(Any, (model, info) if output_loading_info else model)

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        return {
            "AutoConfig": EupeLlavaConfig,
            "AutoModel": EupeLlavaModel,
            "AutoModelForImageTextToText": EupeLlavaForConditionalGeneration,
            "AutoProcessor": EupeLlavaProcessor,
        }

    def _default_processor(self) -> None:
        return None  # a processor saves its own

    def _new_card(self, tags: Sequence[str] = ()) -> ModelCard:
        return llava_card(self, tags)


class EupeLlavaModel(EupeLlavaPreTrainedModel, LlavaModel):
    """transformers' `LlavaModel` on an EUPE tower: `vision_tower`, `multi_modal_projector`, `language_model`.

    A frozen tower (`model.vision_tower.requires_grad_(False)`) is deterministic, in train mode too.

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig
    >>> from eupe_hf import EupeLlavaConfig, EupeLlavaModel, variant_config

    >>> text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    >>> model = EupeLlavaModel(EupeLlavaConfig(vision_config=variant_config("eupe-t"), text_config=text)).eval()
    >>> features = model.get_image_features(torch.zeros(2, 3, 64, 96)).pooler_output  # random weights
    >>> [tuple(image.shape) for image in features]
    [(24, 64), (24, 64)]

    ```
    """

    def __init__(self, config: EupeLlavaConfig):
        super(LlavaModel, self).__init__(config)  # past LlavaModel, whose AutoModel needs the package
        self.vision_tower = EupeModel(config.vision_config)
        self.multi_modal_projector = EupeLlavaProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Freeze the blocks of the tower after the last one that is projected: they never get a gradient.

        Call it after `requires_grad_(True)`.
        """
        layers = self.config.feature_layers(self.config.vision_feature_layer)
        if self.config.vision_config.backbone_type == "vit":  # of a ConvNeXt the last stage is projected
            self.vision_tower.encoder.layers[max(layers) :].requires_grad_(False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """As in transformers. In training, tower and projector have gradients of zero in batches of text alone."""
        has_image = pixel_values is not None or bool(kwargs.get("mm_encoder_outputs"))
        if self.training and not has_image and (input_ids is None) == (inputs_embeds is not None):
            embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            input_ids, inputs_embeds = None, embeds + self._blank_image(embeds)
        places = (attention_mask, position_ids, past_key_values)
        return super().forward(input_ids, pixel_values, *places, inputs_embeds, **kwargs)

    def _blank_image(self, embeds: torch.Tensor) -> torch.Tensor | float:
        """Zero, by way of all that encodes images and trains: distributed training waits for the gradient of each."""
        parameters = (*self.vision_tower.parameters(), *self.multi_modal_projector.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            return 0.0
        side = self.vision_tower.config.patch_size * self.config.scale_factor
        image = embeds.new_zeros(1, self.vision_tower.config.num_channels, side, side)
        return 0 * self.get_image_features(image, return_dict=True).pooler_output[0].sum().to(embeds.dtype)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encodes images into the tokens that the language model reads.

        Args:
            pixel_values: (N, 3, H, W), normalised: all images of the batch in the order of the prompts.
            vision_feature_layer: By default the configuration's.
            vision_feature_select_strategy: `None` or "default".
            image_sizes: (N, 2), height and width in pixels of images that were padded at the bottom and the right.
                Each is encoded as if it were alone.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `pooler_output`: one (tokens, width of the language model) per image: its normed patch tokens, row-major,
            projected. If all images have one size, the other outputs are those of `EupeModel.forward`.

        Raises:
            ValueError: The tower lacks a layer, the strategy is another, or an image is too small for one token.
        """
        if vision_feature_select_strategy not in (None, "default"):
            given = repr(vision_feature_select_strategy)
            raise ValueError(f"vision_feature_select_strategy must be 'default', patch tokens only, got {given}.")
        chosen = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = self.config.feature_layers(chosen)
        if image_sizes is None:
            return self._encode(pixel_values, layers, **kwargs)
        sizes = [tuple(size) for size in torch.as_tensor(image_sizes).tolist()]
        if len(sizes) != len(pixel_values):
            raise ValueError(f"image_sizes must have one row per image, {len(pixel_values)}, got {len(sizes)}.")
        features: list[Any] = [None] * len(sizes)
        for height, width in dict.fromkeys(sizes):
            indices = [i for i, size in enumerate(sizes) if size == (height, width)]
            outputs = self._encode(pixel_values[indices, :, :height, :width], layers, **kwargs)
            for i, feature in zip(indices, outputs.pooler_output, strict=True):
                features[i] = feature
        return outputs if len(set(sizes)) == 1 else BaseModelOutputWithPooling(pooler_output=features)

    def _encode(self, pixel_values: torch.Tensor, layers: list[int], **kwargs: Any) -> BaseModelOutputWithPooling:
        """Image tokens of images of one size."""
        tower = self.vision_tower
        stride, last = tower.config.patch_size, tower.config.num_stages
        height, width = pixel_values.shape[-2:]
        grid = (height // stride, width // stride)
        if min(grid) < self.config.scale_factor:
            least = stride * self.config.scale_factor
            raise ValueError(f"An image must be at least {least} x {least} pixels, one token, got {height} x {width}.")
        returned = tower.config.selected_hidden_states(kwargs.pop("output_hidden_states", None))
        asked = tuple(sorted(returned | {layer for layer in layers if layer != last}))  # a list would be warned of
        outputs = tower(pixel_values, output_hidden_states=asked, **kwargs)
        tokens = [
            outputs.last_hidden_state if layer == last else tower.norm(outputs.hidden_states[layer])
            for layer in layers
        ]
        patches = torch.cat([layer[:, tower.config.num_prefix_tokens :] for layer in tokens], dim=-1)
        outputs.pooler_output = list(self.multi_modal_projector(patches, grid))
        if outputs.hidden_states is not None:
            states = enumerate(outputs.hidden_states)
            outputs.hidden_states = tuple(s if i in returned else None for i, s in states) if returned else None
        return outputs

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Returns a mask (B, tokens, 1) of the places for `image_features` (features, C) of all images together.

        Without `input_ids` (B, tokens) it looks for the image token's embedding in `inputs_embeds` (B, tokens, C).

        Raises:
            ValueError: There are more or fewer image tokens than features, or the prompt exceeds the context.
        """
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        count = image_features.shape[0]
        limit, length = getattr(self.config.text_config, "max_position_embeddings", None), inputs_embeds.shape[1]
        if limit is not None and length > limit:
            raise ValueError(
                f"The prompt has {length} tokens, the language model takes at most {limit}; the batch holds {count} "
                "image tokens. Pass fewer or smaller images (size= of the processor), or train with scale_factor=2."
            )
        torch_compilable_check(
            mask.sum() == count,
            lambda: (
                f"Image features and image tokens do not match: the prompts hold {int(mask.sum())} image tokens, the "
                f"images give {count} features. Make both with one call of the processor, whose patch_size and "
                f"scale_factor must be the model's ({self.config.vision_config.patch_size} and "
                f"{self.config.scale_factor}), and do not truncate prompts."
            ),
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)


def _new_head(config: EupeLlavaConfig) -> nn.Linear:
    text, softcap = config.text_config, getattr(config.text_config, "final_logit_softcapping", None)
    sizes, bias = (text.hidden_size, text.vocab_size), config.lm_head_bias
    return _SoftcappedLinear(*sizes, bias=bias, softcap=softcap) if softcap else nn.Linear(*sizes, bias=bias)


class _SoftcappedLinear(nn.Linear):
    """The head of a language model that bounds its logits, like Gemma 2."""

    def __init__(self, *args: Any, softcap: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.softcap = softcap

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # torch's name
        return self.softcap * torch.tanh(super().forward(input) / self.softcap)


class EupeLlavaForConditionalGeneration(
    EupeLlavaJoiningMixin, EupeLlavaPreTrainedModel, LlavaForConditionalGeneration, GenerationMixin
):
    """transformers' `LlavaForConditionalGeneration` on an EUPE tower. `from_vision_text` joins one from two models.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig
    >>> from eupe_hf import EupeLlavaConfig, EupeLlavaForConditionalGeneration, variant_config

    >>> text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    >>> config = EupeLlavaConfig(vision_config=variant_config("eupe-t"), text_config=text, image_token_index=7)
    >>> model = EupeLlavaForConditionalGeneration(config).eval()  # random weights
    >>> prompt = torch.tensor([[1, *[7] * 16, 5]])  # 64 x 64 pixels are 16 tokens
    >>> model(input_ids=prompt, pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape
    torch.Size([1, 18, 32000])

    ```
    """

    def __init__(self, config: EupeLlavaConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = EupeLlavaModel(config)
        self.lm_head = _new_head(config)
        self._tie_to(self.model.language_model)
        self.post_init()

    def _tie_to(self, language_model: PreTrainedModel) -> None:
        # transformers' class ties the head to "embed_tokens"; not all language models call it that
        embeddings = language_model.get_input_embeddings()
        name = next(name for name, module in language_model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}

    @property
    def language_model(self) -> PreTrainedModel:
        """The language model without its head, `model.language_model`."""
        return self.model.language_model

    @property
    def vision_tower(self) -> EupeModel:
        """The encoder, `model.vision_tower`."""
        return self.model.vision_tower

    @property
    def multi_modal_projector(self) -> EupeLlavaProjector:
        """The projector, `model.multi_modal_projector`."""
        return self.model.multi_modal_projector
