# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Short names: what `from_pretrained("eupe-s")` means, and the one place where transformers is taught it.

`import eupe_hf` calls `register`, which enters the package's classes with the Auto classes, tells the writers of model
cards which repository each name stands for, and then installs the hook:

- `from_pretrained` of AutoConfig, AutoImageProcessor, AutoProcessor, AutoVideoProcessor and AutoTokenizer (which
  pipelines try), AutoBackbone and of every Eupe class is wrapped: one of the six short names is replaced by the folder
  that `fetch` gives, anything else goes through untouched. AutoModel and its siblings need no wrapper, they call
  AutoConfig and the Eupe classes.
- `resolve_revision`, `find_adapter_config_file` and `get_task`, with which transformers asks the Hub about a name
  before it loads, answer for short names by themselves.

The hook may be installed twice without effect, and `remove_short_names` takes it out. With the environment variable
EUPE_HF_NO_SHORT_NAMES=1 it is never installed; classes are registered all the same.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import logging

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.configuration_eupe_llava import EupeLlavaConfig
from eupe_hf.models.configuration_eupe_multitask import EupeMultiTaskConfig
from eupe_hf.models.configuration_eupe_pyramid import EupePyramidConfig
from eupe_hf.models.image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil
from eupe_hf.models.modeling_eupe import EupePreTrainedModel
from eupe_hf.models.processing_eupe_llava import EupeLlavaProcessor
from eupe_hf.variants import VARIANTS, Variant, find_variant

from .fetch import _HUB_ARGUMENTS, fetch


logger = logging.get_logger(__name__)


DISABLE_VARIABLE = "EUPE_HF_NO_SHORT_NAMES"


# ---- teaching transformers ----

# (owner, attribute, what stood there), for `remove_short_names`; kept when this module is reloaded
_replaced: list[tuple[Any, str, Any]] = globals().get("_replaced", [])


_MARK = "_answers_short_names"


def install_short_names() -> None:
    """Install the hook described at the top of this module. Without effect where it is installed."""
    if _replaced:
        _answer_lookups()
        return
    for cls in (AutoConfig, AutoImageProcessor, AutoProcessor, AutoVideoProcessor, AutoTokenizer):
        _wrap_from_pretrained(cls, VARIANTS.get)
    # Eupe classes also take the Hub repositories of the six, which may hold nothing but the raw file.
    own = (EupeConfig, EupeLlavaConfig, EupeMultiTaskConfig, EupePyramidConfig, EupePreTrainedModel)
    for cls in (*own, EupeImageProcessor, EupeImageProcessorPil, EupeLlavaProcessor):
        _wrap_from_pretrained(cls, find_variant)
    _wrap_auto_backbone()
    _answer_lookups()


def remove_short_names() -> None:
    """Put everything back as transformers has it."""
    while _replaced:
        owner, attribute, original = _replaced.pop()
        if original is None:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, original)


def _replace(owner: Any, attribute: str, new: Any) -> None:
    _replaced.append((owner, attribute, vars(owner).get(attribute)))
    setattr(owner, attribute, new)


def _wrap_from_pretrained(cls: Any, find: Callable[[str], Variant | None]) -> None:
    original = cls.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(owner: type, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = pretrained_model_name_or_path
        if not isinstance(name, str) or find(name) is None:
            return original(owner, name, *args, **kwargs)
        folder = fetch(name, **{key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs})
        loaded = original(owner, os.fspath(folder), *args, **kwargs)
        _remember_name(loaded[0] if isinstance(loaded, tuple) else loaded, name)
        return loaded

    _replace(cls, "from_pretrained", classmethod(from_pretrained))


def _remember_name(loaded: Any, name: str) -> None:
    # What is saved, trained and shared from here on names the model, not a folder of this machine.
    if isinstance(loaded, EupePreTrainedModel):
        loaded.name_or_path = name
        loaded = loaded.config
    if isinstance(loaded, EupeConfig | EupeMultiTaskConfig | EupePyramidConfig):
        loaded.name_or_path = name


def _wrap_auto_backbone() -> None:
    original = AutoBackbone.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(owner: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        # transformers asks the Hub for the name first, even for a local folder: short names go past that question
        if isinstance(pretrained_model_name_or_path, str) and pretrained_model_name_or_path in VARIANTS:
            original_of_models = _BaseAutoModelClass.from_pretrained.__func__
            return original_of_models(owner, pretrained_model_name_or_path, *args, **kwargs)
        return original(owner, pretrained_model_name_or_path, *args, **kwargs)

    _replace(AutoBackbone, "from_pretrained", classmethod(from_pretrained))


def _answer_lookups() -> None:
    """Let transformers' own questions about a name be answered here for short names.

    The functions are replaced where they are defined for whoever imports them later, and in the modules that have
    imported them. `transformers.pipelines` may be loaded after this package: it takes the replaced ones from
    `transformers.utils`; its own `get_task` is replaced as soon as a short name is first asked for.
    """
    answers: dict[str, Callable] = {
        "resolve_revision": lambda name, revision=None, **_: revision,
        "find_adapter_config_file": lambda name, **_: None,
        "get_task": lambda name, *_, **__: "image-feature-extraction",
    }
    for module_name in ("transformers.utils", "transformers.models.auto.auto_factory", "transformers.pipelines"):
        module = sys.modules.get(module_name)
        for attribute, answer in answers.items():
            original = vars(module).get(attribute) if module is not None else None
            if original is not None and _MARK not in vars(original):
                _replace(module, attribute, _answering(original, answer))


def _answering(original: Callable, answer: Callable) -> Callable:
    @functools.wraps(original)
    def lookup(name: Any, *args: Any, **kwargs: Any) -> Any:
        _answer_lookups()  # by now `transformers.pipelines` is loaded, if it is the one that asks
        known = isinstance(name, str) and name in VARIANTS and not Path(name).is_dir()
        return (answer if known else original)(name, *args, **kwargs)

    vars(lookup)[_MARK] = True
    return lookup
