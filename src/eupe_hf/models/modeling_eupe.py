# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""`EupeModel` and `EupeBackbone`: one contract for the ViTs and the ConvNeXts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_eupe import EupeConfig
from .modeling_eupe_convnext import EupeConvNextEncoder
from .modeling_eupe_loading import EupeLoadingMixin
from .modeling_eupe_saving import EupeSavingMixin
from .modeling_eupe_vit import EupeViTEncoder, warn_of_prefix_tokens


_PROCESSOR = "The image processor makes them from pictures: processor(images, return_tensors='pt')."


class EupePreTrainedModel(EupeLoadingMixin, EupeSavingMixin, PreTrainedModel):
    """What all EUPE models share: loading that never leaves an encoder random, and saving that is complete."""

    config_class = EupeConfig
    base_model_prefix = "eupe"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] = []  # those of the encoder in the model, which transformers adds
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # `forward` takes any keyword, but averages the loss over its own batch. The Trainer must do the rest, or the loss
    # grows with gradient accumulation and with the number of processes.
    accepts_loss_kwargs = False
    # of the task models: the Auto class that loads them, and the pipeline that runs them
    _task_auto_class: str | None = None
    _pipeline_tag = "image-feature-extraction"

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that reads the image."""
        return self.base_model.encoder.get_input_embeddings()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes outside its tree transformers passes over modules without parameters of their own, also heads, in
        # case their initialisation overwrites what was loaded. Ours asks each parameter.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "init_head_weights"):  # parts of heads know how they start
            module.init_head_weights()

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        known: dict[str, type] = {"AutoConfig": EupeConfig, "AutoModel": EupeModel, "AutoBackbone": EupeBackbone}
        return known | ({cls._task_auto_class: cls} if cls._task_auto_class else {})


class _EupeEncoderModel(EupePreTrainedModel):
    # The parts of `EupeModel` and `EupeBackbone`: same names, so each loads the other's checkpoint.

    def __init__(self, config: EupeConfig):
        super().__init__(config)
        encoder_class = EupeViTEncoder if config.backbone_type == "vit" else EupeConvNextEncoder
        self.encoder = encoder_class(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Refuse what cannot be an image batch, and cast to the dtype of the weights."""
        channels, stride, shape = self.config.num_channels, self.config.patch_size, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values must be (batch, {channels}, height, width), got {shape}. {_PROCESSOR}")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values must be normalised floats, got {pixel_values.dtype}. {_PROCESSOR}")
        if shape[2] < stride or shape[3] < stride:
            got = f"{shape[2]} x {shape[3]}"
            raise ValueError(f"pixel_values must be at least {stride} x {stride} pixels, one patch, got {got}.")
        return pixel_values.to(self.norm.weight.dtype)


class EupeModel(_EupeEncoderModel):
    """The bare EUPE encoder: normed tokens and one global feature, the same call for ViT and ConvNeXt.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeModel, variant_config

    >>> model = EupeModel(variant_config("eupe-t")).eval()  # random; EupeModel.from_pretrained("eupe-t") for real
    >>> outputs = model(torch.zeros(1, 3, 256, 256))
    >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
    (torch.Size([1, 261, 192]), torch.Size([1, 192]))
    >>> patches = outputs.last_hidden_state[:, model.config.num_prefix_tokens :]
    >>> patches.shape
    torch.Size([1, 256, 192])

    ```
    """

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised with the ImageNet mean and standard deviation. Any size
                of at least one patch; pixels beyond the last whole patch (16 for ViTs) are not read.
            bool_masked_pos: ViT only: (B, patches) or (B, rows, columns), True where a patch embedding is replaced
                by the mask token before the first block. The number of tokens stays.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in transformers.
                Attentions are computed by the eager back end for that call.

        Returns:
            `last_hidden_state` (B, tokens, C): all tokens after the final norm, `config.num_prefix_tokens` of them
            (class token, then registers) before the patches in row-major order; a ConvNeXt has only its grid.
            `pooler_output` (B, C): the global feature: the normed class token, or for a ConvNeXt the norm of the mean
            over the last stage. `hidden_states` on request: embeddings and each block's output before the
            final norm (B, tokens, C), or for a ConvNeXt stem and stages (B, C, H, W). `attentions` on request, ViT
            only: (B, heads, tokens, tokens) per block.

        Raises:
            ValueError: Shapes that do not fit, integer pixels, or a mask for a ConvNeXt.
        """
        pixel_values = self._check_pixel_values(pixel_values)
        if self.config.backbone_type == "vit":
            warn_of_prefix_tokens(self.config, kwargs.get("output_hidden_states"))
            outputs = self.encoder(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
            tokens = self.norm(outputs.last_hidden_state)
            pooled = tokens[:, 0]
        else:
            if bool_masked_pos is not None:
                raise ValueError("bool_masked_pos needs a mask token, which only the ViTs have.")
            outputs = self.encoder(pixel_values, **kwargs)
            grid = outputs.last_hidden_state.flatten(2).transpose(1, 2)  # (B, H * W, C)
            pooled, tokens = self.norm(grid.mean(dim=1)), self.norm(grid)
        states, attentions = outputs.hidden_states, outputs.attentions
        return BaseModelOutputWithPooling(tokens, pooled, hidden_states=states, attentions=attentions)

    def attention_maps(
        self, pixel_values: torch.Tensor, layers: Sequence[int] = (-1,), queries: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Attention of chosen blocks, while all other blocks run with the fast back end.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            layers: Blocks, counted from 0; negative ones from the end.
            queries: Tokens whose attention you want, e.g. `[0]` for the class token alone; default all. The matrix of
                one block of eupe-b at 1024 pixels takes 0.8 GB in float32.

        Returns:
            One (B, heads, queries, tokens) per entry of `layers`, rows summing to 1. Tokens count the prefix: patch
            (i, j) of a grid `w` wide is token `num_prefix_tokens + i * w + j`.

        Raises:
            ValueError: The model is a ConvNeXt, or a layer does not exist.
        """
        if self.config.backbone_type != "vit":
            raise ValueError("A ConvNeXt has no attention; attention_maps works on the ViTs: eupe-t, eupe-s, eupe-b.")
        count = self.config.num_hidden_layers
        if not layers or not all(-count <= i < count for i in layers):
            raise ValueError(f"layers must name blocks from {-count} to {count - 1}, got {list(layers)}.")
        pixel_values = self._check_pixel_values(pixel_values)
        return self.encoder.attention_maps(pixel_values, [i % count for i in layers], queries)


@dataclass
class EupeBackboneOutput(BackboneOutput):
    """transformers' `BackboneOutput`, and the global feature of each chosen stage.

    Args:
        cls_tokens: With `config.return_class_token`: one (B, C) per feature map, the class token, or for a ConvNeXt
            the mean of the map; through the final norm where the map is.
    """

    cls_tokens: tuple[torch.Tensor, ...] | None = None


class EupeBackbone(BackboneMixin, _EupeEncoderModel):
    """EUPE as a backbone of transformers' decoders: feature maps of chosen stages.

    Stage 0 is the stem (a ViT's embeddings), stage i + 1 the output of block i (counted from 0) or, for a ConvNeXt,
    of its stage i. Maps are normed by default: all of a ViT's by its final norm, of a ConvNeXt the last one alone,
    which is the only stage that has a norm. `config.apply_layernorm = False` gives them raw.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeBackbone, variant_config

    >>> config = variant_config("eupe-convnext-t", out_indices=[1, 2, 3, 4])
    >>> backbone = EupeBackbone(config).eval()  # random; EupeBackbone.from_pretrained("eupe-convnext-t") for real
    >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 64)).feature_maps]
    [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]
    >>> backbone.channels
    [96, 192, 384, 768]

    ```
    """

    def __init__(self, config: EupeConfig):
        super().__init__(config)
        self.has_attentions = config.backbone_type == "vit"
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.needed: list[int] | None = None  # the stages that the model around it reads, if not all chosen ones
        self._unused: frozenset[str] = frozenset()
        self.freeze_unused()

    def requires_grad_(self, requires_grad: bool = True) -> "EupeBackbone":
        """As in torch; what the chosen stages do not need stays frozen."""
        super().requires_grad_(requires_grad)
        self.freeze_unused()
        return self

    def freeze_unused(self) -> None:
        """Freeze what no chosen stage needs: later blocks, a norm that is not applied, the mask token.

        Distributed training waits for a gradient of every parameter that trains. Call it after a change of the stages:
        what they need now trains with the rest of the encoder. A loss of your own on later hidden states trains
        nothing in what is frozen: choose these stages too.
        """
        config, blocks = self.config, self.unused_blocks()
        prefixes = ["encoder.embeddings.mask_token", *(f"{name}." for name in blocks)]
        if not config.apply_layernorm or (blocks and config.backbone_type == "convnext"):
            prefixes.append("norm.")
        unused = frozenset(name for name, _ in self.named_parameters() if name.startswith(tuple(prefixes)))
        trains = self.get_input_embeddings().weight.requires_grad
        for name, parameter in self.named_parameters():
            if name in unused:
                parameter.requires_grad_(False)
            elif name in self._unused:
                parameter.requires_grad_(trains and parameter.is_floating_point())
        self._unused = unused

    def unused_blocks(self) -> list[str]:
        """Names of the blocks (ConvNeXt: stages) after the last chosen stage."""
        blocks = "layers" if self.config.backbone_type == "vit" else "stages"
        last = max(self._from_stem(self.needed))
        return [f"encoder.{blocks}.{i}" for i in range(last, self.config.num_stages)]

    def share_encoder(self, other: "EupeBackbone") -> None:
        """Take the encoder of another, which goes on deciding what in it trains until `freeze_unused` is called."""
        self.encoder, self.norm, self._unused = other.encoder, other.norm, other._unused

    def _from_stem(self, stages: Sequence[int] | None) -> list[int]:
        return [index % len(self.stage_names) for index in (self.out_indices if stages is None else stages)]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_class_token: bool | None = None,
        stages: Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EupeBackboneOutput:
        """Feature maps of the stages in `config.out_indices`.

        What comes after the last stage that the call returns is not computed, unless it asks for attentions.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            return_class_token: Give `cls_tokens`; `None` takes the setting of the configuration.
            stages: Other stages for this call, as in `config.out_indices`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `feature_maps`: one (B, C, H / stride, W / stride) per chosen stage, in the order of the stages; the
            stride is 16 for the ViTs, 4, 8, 16, 32 for the ConvNeXts (the stem 4). `cls_tokens` on request.
            `hidden_states` and `attentions` as in `EupeModel.forward`.
        """
        pixel_values = self._check_pixel_values(pixel_values)
        if return_class_token is None:
            return_class_token = self.config.return_class_token
        returned = self.config.selected_hidden_states(kwargs.pop("output_hidden_states", None))
        chosen = self._from_stem(stages)
        wanted = [*chosen, *returned]
        outputs = self.encoder(pixel_values, output_hidden_states=wanted, num_layers=max(wanted), **kwargs)
        grid = tuple(side // self.config.patch_size for side in pixel_values.shape[2:])
        found = [self._stage(outputs.hidden_states[index], index, grid) for index in chosen]
        states = tuple(state if i in returned else None for i, state in enumerate(outputs.hidden_states))
        return EupeBackboneOutput(
            feature_maps=tuple(feature_map for feature_map, _ in found),
            hidden_states=states if returned else None,
            attentions=outputs.attentions,
            cls_tokens=tuple(token for _, token in found) if return_class_token else None,
        )

    def _stage(
        self, hidden_states: torch.Tensor, index: int, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature map and global feature of one stage."""
        config = self.config
        if config.backbone_type == "convnext":
            pooled = hidden_states.mean(dim=(2, 3))
            if config.apply_layernorm and index == config.num_stages:
                return self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), self.norm(pooled)
            return hidden_states, pooled
        if config.apply_layernorm:
            hidden_states = self.norm(hidden_states)
        patches = hidden_states[:, config.num_prefix_tokens :]
        if not config.reshape_hidden_states:
            return torch.cat((hidden_states[:, :1], patches), dim=1), hidden_states[:, 0]
        return patches.transpose(1, 2).unflatten(2, grid), hidden_states[:, 0]


def find_encoders(model: nn.Module) -> dict[str, EupeModel | EupeBackbone]:
    """The EUPE encoders in a model, by name; "" is the model itself."""
    return {name: part for name, part in model.named_modules() if isinstance(part, (EupeModel, EupeBackbone))}
