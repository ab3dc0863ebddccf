# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts and images for `EupeLlavaForConditionalGeneration`: one image token per projected feature."""

import json
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import LlavaProcessor
from transformers.processing_utils import MultiModalData

from .configuration_eupe import EupeConfig
from .image_processing_eupe import EupeImageProcessor
from .image_processing_eupe_reading import check_pixel_count
from .sharing_eupe import EupeNamesMixin, EupeSavedProcessorMixin


class _ChatFormat(NamedTuple):
    """How a family of language models writes a turn: `header`, `before`, the content, `end`, `after`.

    `%s` in the header is the role, under its name in `roles`. Only the assistant's turns end with `end` and `after`.
    """

    header: str
    before: str
    end: str
    after: str
    others_end: str
    roles: dict[str, str]


_LLAMA_HEADER, _GEMMA_ROLES = "<|start_header_id|>%s<|end_header_id|>\n\n", {"assistant": "model", "system": "user"}
# by a token that only these models know
_CHAT_FORMATS = {
    "<|im_start|>": _ChatFormat("<|im_start|>%s\n", "", "<|im_end|>", "\n", "<|im_end|>\n", {}),  # ChatML
    "<|start_header_id|>": _ChatFormat(_LLAMA_HEADER, "", "<|eot_id|>", "", "<|eot_id|>", {}),
    "<start_of_turn>": _ChatFormat("<start_of_turn>%s\n", "", "<end_of_turn>", "\n", "<end_of_turn>\n", _GEMMA_ROLES),
    "<|assistant|>": _ChatFormat("<|%s|>\n", "", "<|end|>", "\n", "<|end|>\n", {}),  # Phi-3
}
_TEMPLATE = """\
{% set turn = TURN %}\
{% for message in messages %}\
{% set content %}\
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ turn.image }}\
{% else %}{{ raise_exception('parts of a message must be text or image, not ' ~ part['type']) }}{% endif %}\
{% endfor %}{% endif %}\
{% endset %}\
{{ turn.header | replace('%s', turn.roles[message['role']] or message['role']) }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ turn.before ~ content ~ turn.end }}{% endgeneration %}{{ turn.after }}\
{% else %}\
{{ turn.before ~ content ~ turn.others_end }}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ turn.header | replace('%s', turn.roles.assistant or 'assistant') }}{% endif %}"""


def default_chat_template(tokenizer: Any, image_token: str = "<image>") -> str:
    """Returns a chat template in Jinja, in the format that the language model knows.

    The tokenizer's special tokens decide: ChatML (Qwen, SmolLM), Llama 3, Gemma, Phi-3, else LLaVA-1.5's "USER: ...
    ASSISTANT: ...". What the assistant says, with its end-of-turn token, is marked for
    `return_assistant_tokens_mask=True`. The content of a message is a string, or a list of parts of the types "text"
    and "image". `image_token` and a line break stand for an image.
    """
    return _TEMPLATE.replace("TURN", json.dumps({**_chat_format(tokenizer)._asdict(), "image": f"{image_token}\n"}))


def _chat_format(tokenizer: Any) -> _ChatFormat:
    known = tokenizer.get_vocab()
    roles = {role: role.upper() for role in ("system", "user", "assistant", "tool")}
    plain = _ChatFormat("%s:", " ", tokenizer.eos_token or "", "", " ", roles)
    return next((found for token, found in _CHAT_FORMATS.items() if token in known and found.end in known), plain)


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Returns the id of the token that ends a turn in `default_chat_template`. `generate` must stop there."""
    return tokenizer.get_vocab().get(_chat_format(tokenizer).end)


class _SavedLlavaProcessor(EupeNamesMixin, EupeSavedProcessorMixin, LlavaProcessor):
    """A base of its own: transformers' tests compare the methods of a processor with those of its first base."""


class EupeLlavaProcessor(_SavedLlavaProcessor):
    """transformers' `LlavaProcessor` with an EUPE image processor.

    Each image token of a prompt is repeated once per feature of its image: height and width after resizing, in
    patches, divided by `scale_factor`. Images of different sizes are padded at the bottom and the right for the batch,
    with `image_sizes` beside them, and each is encoded as if it were alone.

    Args:
        image_processor: An `EupeImageProcessor`.
        tokenizer: The language model's. `image_token` must be one of its tokens.
        patch_size: The tower's: 16 for the ViTs, 32 for the ConvNeXts.
        vision_feature_select_strategy: "default": patch tokens only.
        chat_template: Used by `apply_chat_template`.
        image_token: Stands for an image in a prompt, unless the tokenizer names its own.
        num_additional_image_tokens: For tools that count as for CLIP: the class token, which "default" drops.
        scale_factor: The model's.

    Raises:
        ValueError: `image_token` is not one token of the tokenizer.

    Example:

    ```python
    >>> import numpy as np
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from eupe_hf import EupeLlavaProcessor, variant_config

    >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "cat": 2}, unk_token="<unk>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")  # of the language model
    >>> processor = EupeLlavaProcessor.from_tokenizer(tokenizer, variant_config("eupe-s", image_size=32))
    >>> inputs = processor(images=np.zeros((480, 640, 3), dtype=np.uint8), text="<image> a cat")
    >>> inputs["input_ids"]  # 32 x 32 pixels are 2 x 2 patches
    [[3, 3, 3, 3, 1, 2]]

    ```
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        vision_feature_select_strategy: str = "default",
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 1,
        scale_factor: int = 1,
        **kwargs: Any,
    ):
        # by position: the signature is LLaVA's up to here
        options = (patch_size, vision_feature_select_strategy, chat_template, image_token, num_additional_image_tokens)
        super().__init__(image_processor, tokenizer, *options, **kwargs)
        self.scale_factor = scale_factor
        ids = tokenizer.encode(self.image_token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"{self.image_token!r} must be one token, but the tokenizer splits it into {len(ids)}. "
                "EupeLlavaProcessor.from_tokenizer adds it."
            )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        vision_config: EupeConfig,
        scale_factor: int = 1,
        image_token: str = "<image>",
        chat_template: str | None = None,
    ) -> "EupeLlavaProcessor":
        """Makes the processor of a new VLM.

        Args:
            tokenizer: The language model's. It gets the image token, the chat template and, if it has none, a padding
                token, and pads on the left, as `generate` needs. Then the model needs `len(tokenizer)` embeddings.
            vision_config: The tower's. Images are resized to `image_size` x `image_size` pixels.
            scale_factor: The model's.
            image_token: Stands for an image in a prompt.
            chat_template: By default `default_chat_template`.
        """
        tokenizer.add_special_tokens({"extra_special_tokens": [image_token]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
        tokenizer.chat_template = chat_template or default_chat_template(tokenizer, image_token)
        images, template = EupeImageProcessor(size=vision_config.image_size), tokenizer.chat_template
        options: Any = {"image_token": image_token, "scale_factor": scale_factor}
        return cls(images, tokenizer, vision_config.patch_size, chat_template=template, **options)

    def image_tokens(self, height: int, width: int) -> int:
        """Returns the number of tokens of an image of this size in pixels; a ValueError if there is none."""
        stride = self.patch_size * self.scale_factor
        if min(height, width) < stride:
            size, least = f"{height} x {width}", f"{stride} x {stride}"
            raise ValueError(f"An image of {size} pixels gives no image token: at least {least} are needed.")
        return (height // stride) * (width // stride)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Returns the image tokens of one image of the batch."""
        sizes = image_inputs.get("image_sizes")
        size = image_inputs["pixel_values"][image_idx].shape[-2:] if sizes is None else sizes[image_idx]
        return self.image_token * self.image_tokens(*size)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        return_tensors = kwargs.pop("return_tensors", None)
        processed = self.image_processor(images, **kwargs)
        pixels = [torch.as_tensor(image) for image in processed["pixel_values"]]
        sizes = [tuple(image.shape[-2:]) for image in pixels]
        if len(set(sizes)) > 1 and return_tensors is not None:
            height, width = (max(sides) for sides in zip(*sizes, strict=True))
            check_pixel_count(width, height, "the images would be padded to")
            missing = [(0, width - columns, 0, height - rows) for rows, columns in sizes]
            processed["pixel_values"] = torch.stack(list(map(functional.pad, pixels, missing)))
            processed["image_sizes"] = [list(size) for size in sizes]
        elif return_tensors == "pt":
            processed["pixel_values"] = torch.stack(pixels)
        return processed, [self.replace_image_token(processed, index) for index in range(len(pixels))]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        sizes = self.image_processor.processed_sizes(image_sizes, **self._merge_kwargs(**kwargs)["images_kwargs"])
        tokens = [self.image_tokens(*size) for size in sizes]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(sizes))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `processor_config.json`, which also says which file holds the code."""
        auto_map = {"AutoProcessor": f"processing_eupe_llava.{type(self).__name__}"}
        return {**super().to_dict(), "auto_map": auto_map}
