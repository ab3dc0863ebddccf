# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts and pictures for `EupeLlavaForConditionalGeneration`: one image token per projected feature."""

import json
import os
import re
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import LlavaProcessor
from transformers.processing_utils import MultiModalData

from .configuration_eupe import EupeConfig
from .image_processing_eupe import EupeImageProcessor
from .sharing_eupe import EupeCodeMixin, EupeNamesMixin


class _ChatFormat(NamedTuple):
    """How a family of language models writes a turn: `header`, then `before`, the content, `end`, `after`."""

    header: str
    before: str
    end: str
    after: str
    roles: dict[str, str]


# by a token that only such models know; `%s` is the role
_CHAT_FORMATS = {
    "<|im_start|>": _ChatFormat("<|im_start|>%s\n", "", "<|im_end|>", "\n", {}),  # ChatML: Qwen, SmolLM
    "<|start_header_id|>": _ChatFormat("<|start_header_id|>%s<|end_header_id|>\n\n", "", "<|eot_id|>", "", {}),
    "<start_of_turn>": _ChatFormat(
        "<start_of_turn>%s\n", "", "<end_of_turn>", "\n", {"assistant": "model", "system": "user"}
    ),  # Gemma
    "<|assistant|>": _ChatFormat("<|%s|>\n", "", "<|end|>", "\n", {}),  # Phi-3
}


_TEMPLATE = """\
{% for message in messages %}\
{% set content %}\
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ IMAGE }}\
{% else %}{{ raise_exception('parts of a message must be text or image, not ' ~ part['type']) }}{% endif %}\
{% endfor %}{% endif %}\
{% endset %}\
{% if message['role'] == 'assistant' %}\
{{ ASSISTANT }}{% generation %}{{ BEFORE ~ content ~ END }}{% endgeneration %}{{ AFTER }}\
{% else %}\
{{ HEADER | replace('%s', ROLE) ~ BEFORE ~ content ~ OTHER_END }}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ ASSISTANT }}{% endif %}"""


def default_chat_template(tokenizer: Any, image_token: str = "<image>") -> str:
    """Chat template that writes turns as the language model is used to, with an image token for each image.

    The format is told by the special tokens that the tokenizer has: ChatML (Qwen, SmolLM), Llama 3, Gemma, Phi-3; any
    other gets LLaVA-1.5's "USER: ... ASSISTANT: ...". What the assistant says, with the token that ends his turn, is
    marked for `return_assistant_tokens_mask=True`. The content of a message is a string, or a list of parts of the
    types "text" and "image"; each image is followed by a line break.

    Args:
        tokenizer: Of the language model.
        image_token: What stands for an image.

    Returns:
        The template, in Jinja.
    """
    turn = _chat_format(tokenizer)
    is_plain = turn not in _CHAT_FORMATS.values()
    role = "message['role'] | upper" if is_plain else "message['role']"
    if turn.roles and not is_plain:
        role = f"{json.dumps(turn.roles)}.get({role}, {role})"
    values = {
        "IMAGE": json.dumps(image_token + "\n"),
        "ASSISTANT": json.dumps(turn.header.replace("%s", turn.roles.get("assistant", "assistant"))),
        "HEADER": json.dumps(turn.header),
        "ROLE": role,
        "BEFORE": json.dumps(turn.before),
        "END": json.dumps(turn.end),
        "AFTER": json.dumps(turn.after),
        "OTHER_END": json.dumps(" " if is_plain else turn.end + turn.after),
    }
    return re.sub(r"\b[A-Z_]+\b", lambda found: values[found[0]], _TEMPLATE)


def _chat_format(tokenizer: Any) -> _ChatFormat:
    known = tokenizer.get_vocab()
    plain = _ChatFormat("%s:", " ", tokenizer.eos_token or "", "", {"assistant": "ASSISTANT"})
    return next((found for token, found in _CHAT_FORMATS.items() if token in known and found.end in known), plain)


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Id of the token that ends a turn in `default_chat_template`, where `generate` has to stop."""
    return tokenizer.get_vocab().get(_chat_format(tokenizer).end)


class EupeLlavaProcessor(EupeNamesMixin, EupeCodeMixin, LlavaProcessor):
    """transformers' `LlavaProcessor` with an EUPE image processor.

    Each image token of a prompt becomes as many as the image has features: its height and width, after resizing, in
    patches, divided by `scale_factor`. Images that are not resized to one size are padded at the bottom and the right
    for the batch, with `image_sizes` beside them, and encoded each as if it were alone.

    Args:
        image_processor: An `EupeImageProcessor`.
        tokenizer: The language model's, in which `image_token` is one token.
        patch_size: The tower's: 16 for the ViTs, 32 for the ConvNeXts.
        vision_feature_select_strategy: "default": patch tokens only.
        chat_template: Of the conversations that `apply_chat_template` takes.
        image_token: What stands for an image in a prompt. A tokenizer that names its own wins.
        num_additional_image_tokens: For tools that count as for CLIP: the class token, which "default" takes off.
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
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        self.scale_factor = scale_factor
        ids = tokenizer.encode(self.image_token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"{self.image_token!r} must be one token, the tokenizer makes {len(ids)} of it. "
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
        """Processor of a new VLM. The tokenizer gets what it lacks: image token, padding token, chat template.

        Args:
            tokenizer: Of the language model; it pads on the left from here on, as `generate` needs.
            vision_config: Of the tower. Images are squashed to its `image_size`.
            scale_factor: The model's.
            image_token: What stands for an image in a prompt.
            chat_template: By default `default_chat_template`.

        Returns:
            The processor. `len(processor.tokenizer)` says how many embeddings the language model needs.
        """
        tokenizer.add_special_tokens({"extra_special_tokens": [image_token]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
        tokenizer.chat_template = chat_template or default_chat_template(tokenizer, image_token)
        side = vision_config.image_size
        return cls(
            EupeImageProcessor(size={"height": side, "width": side}),
            tokenizer,
            patch_size=vision_config.patch_size,
            chat_template=tokenizer.chat_template,
            image_token=image_token,
            scale_factor=scale_factor,
        )

    def image_tokens(self, height: int, width: int) -> int:
        """Number of image tokens of an image of this size in pixels.

        Raises:
            ValueError: Not even one.
        """
        stride = self.patch_size * self.scale_factor
        if min(height, width) < stride:
            raise ValueError(
                f"An image of {height} x {width} pixels gives no image token: it takes at least {stride} x {stride}."
            )
        return (height // stride) * (width // stride)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The image tokens of one image of the batch."""
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
            padded = [
                functional.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in pixels
            ]
            processed["pixel_values"], processed["image_sizes"] = torch.stack(padded), [list(size) for size in sizes]
        elif return_tensors == "pt":
            processed["pixel_values"] = torch.stack(pixels)
        return processed, [self.replace_image_token(processed, index) for index in range(len(pixels))]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        sizes = self.image_processor.processed_sizes(image_sizes, **self._merge_kwargs(**kwargs)["images_kwargs"])
        return MultiModalData(
            num_image_tokens=[self.image_tokens(*size) for size in sizes], num_image_patches=[1] * len(sizes)
        )

    def to_dict(self) -> dict[str, Any]:
        """Content of `processor_config.json`, which also says where the code is."""
        auto_map = {"AutoProcessor": f"processing_eupe_llava.{type(self).__name__}"}
        return {**super().to_dict(), "auto_map": auto_map}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as transformers does, and the source files with it, so that `trust_remote_code=True` finds them."""
        self._save_code(save_directory)
        return super().save_pretrained(os.fspath(save_directory), push_to_hub=push_to_hub, **kwargs)
