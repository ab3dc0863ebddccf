# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The EUPE vision transformer: image to tokens, without the final norm (which `modeling_eupe.py` applies)."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .configuration_eupe import EupeConfig
from .modeling_eupe_encoder import EupeEncoder, drop_path


logger = logging.get_logger(__name__)

Tables = tuple[torch.Tensor, torch.Tensor]  # cosines and signed sines of the rotary embedding


def warn_of_prefix_tokens(config: EupeConfig, requested: bool | int | Sequence[int] | None) -> None:
    """Say once what hidden states hold beside patches; `requested` is the caller's `output_hidden_states`."""
    # LLaVA's classes in transformers ask for one layer by its number, for several by a list, and remove one token
    if type(requested) in (int, list) and not torch.compiler.is_compiling():
        logger.warning_once(
            f"EUPE's hidden states start with a class token and {config.num_register_tokens} registers and have not "
            "passed the final norm. transformers' LlavaForConditionalGeneration removes the class token alone and "
            "would feed the registers to the language model; EupeLlavaForConditionalGeneration feeds it normed patch "
            "tokens. Ignore this message if you remove all config.num_prefix_tokens tokens yourself."
        )


def _rotary_tables(
    height: int, width: int, prefix: int, periods: tuple[float, ...], device: torch.device, scale: torch.Tensor | None
) -> Tables:
    # Patch centres, each axis by its own length, in [-1, 1].
    rows = 2 * (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height - 1
    columns = 2 * (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width - 1
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # (H * W, 2)
    if scale is not None:
        centres = centres * scale
    angles = 2 * math.pi * centres[:, :, None] / torch.tensor(periods, dtype=torch.float32, device=device)
    angles = angles.flatten(1)  # (H * W, head_dim / 2): the angles of H, then those of W
    cos, sin = angles.cos(), angles.sin()
    # Prefix tokens are rotated by 0, so one multiplication serves all tokens. The table holds the minus sign of
    # (-x2, x1): swapping the halves is cheaper than swapping them and negating one.
    cos = nn.functional.pad(cos.tile(2), (0, 0, prefix, 0), value=1.0)
    sin = nn.functional.pad(torch.cat((-sin, sin), dim=-1), (0, 0, prefix, 0))
    return cos.unsqueeze(1), sin.unsqueeze(1)  # (N, 1, head_dim) each: broadcast over (B, N, heads, head_dim)


_cached_rotary_tables = lru_cache(maxsize=32)(_rotary_tables)


class EupeViTRotaryEmbedding(nn.Module):
    """Axial rotary position embedding: the tables of one image grid, for all blocks.

    They are always float32: in bfloat16 angles are wrong by whole patches on large images. The module holds no tensor
    that a cast could round.
    """

    def __init__(self, config: EupeConfig):
        super().__init__()
        head_dim = config.hidden_size // config.num_attention_heads
        self.periods = tuple(config.rope_periods or rotary_periods(config.rope_theta, head_dim).tolist())
        self.num_prefix_tokens = config.num_prefix_tokens
        self.rescale = config.pos_embed_rescale

    def forward(self, height: int, width: int, device: torch.device, augment: bool = False) -> Tables:
        """Tables for a grid of `height` x `width` patches, as `apply_rotary` takes them.

        Both are (num_prefix_tokens + height * width, 1, head_dim). `augment` multiplies all coordinates by one factor,
        drawn log-uniformly from [1 / rescale, rescale].
        """
        arguments = (height, width, self.num_prefix_tokens, self.periods, device)
        if augment and self.rescale is not None:
            bound = math.log(self.rescale)
            scale = torch.empty(1, dtype=torch.float32, device=device).uniform_(-bound, bound).exp()
            return _rotary_tables(*arguments, scale)
        # A compiler or tracer must see the computation, not cached tensors, and must not cache its own placeholders
        # (fake tensors, proxies).
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or torch._C._functorch.maybe_current_level()
            or is_in_torch_dispatch_mode()
        ):
            return _rotary_tables(*arguments, None)
        # Tensors made in inference mode could not be used in a later training step.
        with torch.inference_mode(False):
            return _cached_rotary_tables(*arguments, None)


def rotary_periods(theta: float, head_dim: int) -> torch.Tensor:
    """Periods of the rotary embedding, `theta ** (2 k / (head_dim / 2))`, float32, (head_dim / 4,)."""
    count = head_dim // 4
    # on the CPU even while a model is built on the meta device: these are numbers, not weights
    return theta ** (2 * torch.arange(count, dtype=torch.float32, device="cpu") / (2 * count))


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys by the angles of their patches: `x * cos + (-x2, x1) * sin`, in float32.

    Args:
        states: (B, N, heads, head_dim), of any float dtype, which the result keeps.
        cos: (N, 1, head_dim).
        sin: (N, 1, head_dim), with the first half of each row negated.
    """
    raised = states.float()
    first, second = raised.chunk(2, dim=-1)
    return torch.addcmul(raised * cos, torch.cat((second, first), dim=-1), sin).to(states.dtype)


def eager_attention_forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights: (B, N, heads, D) and (B, heads, N, N)."""
    weights = attention_weights(query, key, scaling)
    return (weights @ value).transpose(1, 2), weights


def attention_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of queries (B, heads, Q, D) to keys (B, heads, N, D): (B, heads, Q, N), rows summing to 1."""
    scores = query @ key.transpose(-2, -1) * scaling
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


class EupeViTAttention(nn.Module):
    """Multi-head self-attention with rotary positions, without a bias for keys and without dropout."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def rotated_query_key(
        self, hidden_states: torch.Tensor, position_embeddings: Tables
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (B, heads, N, head_dim) of hidden states (B, N, C)."""
        split = (*hidden_states.shape[:-1], -1, self.head_dim)  # (B, N, heads, head_dim)
        query = apply_rotary(self.q_proj(hidden_states).view(split), *position_embeddings)
        key = apply_rotary(self.k_proj(hidden_states).view(split), *position_embeddings)
        return query.transpose(1, 2), key.transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: Tables, output_attentions: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) to (B, N, C), and the weights (B, heads, N, N); without `output_attentions` they may be `None`."""
        query, key = self.rotated_query_key(hidden_states, position_embeddings)
        value = self.v_proj(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)
        attend: Callable = eager_attention_forward
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape)), weights


class EupeViTMLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class EupeViTLayer(GradientCheckpointingLayer):
    """One pre-norm block. Upstream's `ls1.gamma` and `ls2.gamma` are `layer_scale1` and `layer_scale2`."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = EupeViTAttention(config)
        self.layer_scale1 = nn.Parameter(torch.empty(config.hidden_size))
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EupeViTMLP(config)
        self.layer_scale2 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Tables,
        output_attentions: bool = False,
        drop_path_rate: float = 0.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) to (B, N, C); with `output_attentions` a pair, the second (B, heads, N, N)."""
        attended, weights = self.attention(self.norm1(hidden_states), position_embeddings, output_attentions, **kwargs)
        hidden_states = torch.addcmul(hidden_states, drop_path(attended, drop_path_rate), self.layer_scale1)
        refined = self.mlp(self.norm2(hidden_states))
        hidden_states = torch.addcmul(hidden_states, drop_path(refined, drop_path_rate), self.layer_scale2)
        return (hidden_states, weights) if output_attentions else hidden_states


class EupeViTEmbeddings(nn.Module):
    """Image to tokens: class token, register tokens (upstream: storage tokens), patches in row-major order."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None
    ) -> tuple[torch.Tensor, int, int]:
        """Images to tokens (B, 1 + registers + patches, C), and the rows and columns of the patch grid.

        Args:
            pixel_values: (B, num_channels, H, W). Pixels beyond the last whole patch are not read.
            bool_masked_pos: See `EupeModel.forward`.
        """
        patches = self.patch_embeddings(pixel_values)
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (B, rows * columns, C)
        if bool_masked_pos is not None:
            batch, count = patches.shape[:2]
            if bool_masked_pos.shape not in ((batch, count), (batch, height, width)):
                raise ValueError(
                    f"bool_masked_pos must have one entry per patch, ({batch}, {count}) or ({batch}, {height}, "
                    f"{width}) for images of this size, got {tuple(bool_masked_pos.shape)}."
                )
            patches = torch.where(bool_masked_pos.flatten(1).unsqueeze(-1).bool(), self.mask_token, patches)
        cls_token = self.cls_token
        if bool_masked_pos is None and self.training and self.mask_token.requires_grad:
            # a gradient of 0: distributed training waits for one of every parameter that trains
            cls_token = cls_token + 0 * self.mask_token
        prefix = torch.cat((cls_token, self.register_tokens), dim=1).expand(patches.shape[0], -1, -1)
        return torch.cat((prefix, patches), dim=1), height, width


class EupeViTEncoder(EupeEncoder):
    """Embeddings and blocks."""

    _no_split_modules = ["EupeViTEmbeddings", "EupeViTLayer"]

    def __init__(self, config: EupeConfig):
        super().__init__(config)
        self.embeddings = EupeViTEmbeddings(config)
        self.rotary = EupeViTRotaryEmbedding(config)
        self.layers = nn.ModuleList([EupeViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding, a convolution."""
        return self.embeddings.patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EupeViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.register_tokens, std=self.config.initializer_range)
            init.zeros_(module.mask_token)
        elif isinstance(module, EupeViTLayer):
            init.constant_(module.layer_scale1, self.config.layerscale_value)
            init.constant_(module.layer_scale2, self.config.layerscale_value)

    def _embed(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None) -> tuple[torch.Tensor, Tables]:
        hidden_states, height, width = self.embeddings(pixel_values, bool_masked_pos)
        return hidden_states, self.rotary(height, width, hidden_states.device, self._is_random())

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        num_layers: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode without the final norm.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, in the dtype of the weights.
            bool_masked_pos: See `EupeModel.forward`.
            output_hidden_states: Return the embeddings and each block's output; or those with these indices, `None`
                in place of the others.
            output_attentions: Return the attention of each block; computed by the eager back end for this call.
            num_layers: Compute only so many blocks, unless attentions are asked for; states of the others are `None`.
            **kwargs: Passed to the attention back end.

        Returns:
            `last_hidden_state` (B, N, C), of the last block that is computed, and on request `hidden_states` (B, N, C)
            and `attentions` (B, heads, N, N).
        """
        # collected here: transformers' recording hooks cannot be traced when blocks are compiled one by one
        selected = self.config.selected_hidden_states(output_hidden_states)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states, position_embeddings = self._embed(pixel_values, bool_masked_pos)
        states, attentions = [hidden_states if 0 in selected else None], []
        options = {"position_embeddings": position_embeddings, "output_attentions": output_attentions, **kwargs}
        blocks = list(zip(self.layers, self._drop_path_rates(), strict=True))
        blocks = blocks if output_attentions else blocks[:num_layers]
        for i, (layer, rate) in enumerate(blocks, start=1):
            hidden_states = layer(hidden_states, drop_path_rate=rate, **options)
            if output_attentions:
                hidden_states, weights = hidden_states
                attentions.append(weights)
            states.append(hidden_states if i in selected else None)
        states += [None] * (len(self.layers) - len(blocks))
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if selected else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def attention_maps(
        self, pixel_values: torch.Tensor, layers: Sequence[int], queries: Sequence[int] | None
    ) -> tuple[torch.Tensor, ...]:
        """See `EupeModel.attention_maps`. Blocks after the last chosen one are not computed."""
        hidden_states, position_embeddings = self._embed(pixel_values, None)
        maps = {}
        for i, layer in enumerate(self.layers[: max(layers) + 1]):
            if i in layers:
                attention = layer.attention
                query, key = attention.rotated_query_key(layer.norm1(hidden_states), position_embeddings)
                query = query if queries is None else query[:, :, list(queries)]
                maps[i] = attention_weights(query, key, attention.scaling)
            if i < max(layers):
                hidden_states = layer(hidden_states, position_embeddings=position_embeddings)
        return tuple(maps[i] for i in layers)
