# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Short names: what `from_pretrained("eupe-s")` means, and the one place where transformers learns it.

`import eupe_hf` calls `register`, which enters the package's classes with the Auto classes, gives the writers of model
cards the repository of each name, and then installs the hook:

- The package's own classes load through `EupeNamesMixin.load_by_name`. The hook answers there: any name of one of the
  six models, its repository on the Hub included, becomes the folder that `fetch` returns.
- AutoConfig, AutoImageProcessor, AutoProcessor, AutoVideoProcessor, AutoTokenizer (which pipelines try) and
  AutoBackbone get a wrapper of `from_pretrained` that does the same for the six short names alone. AutoModel and its
  siblings need none: they call AutoConfig and the package's classes.
- transformers asks the Hub about a name before it loads, through `resolve_revision`, `find_adapter_config_file` and
  `get_task`. For short names the hook answers. Auto classes also read the file of an adapter before any class of the
  package does: the hook checks it, if the adapter is one of ours.

Anything else goes through untouched. `remove_short_names` puts everything back. With EUPE_HF_NO_SHORT_NAMES=1 in the
environment the hook is never installed; the classes are registered all the same.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import CONFIG_NAME

from eupe_hf.models.sharing_eupe import EupeNamesMixin
from eupe_hf.variants import VARIANTS, find_variant

from .fetch import HUB_ARGUMENTS, fetch
from .private_names import load_as_auto_model


DISABLE_VARIABLE = "EUPE_HF_NO_SHORT_NAMES"
_MARK = "_answers_short_names"
# (owner, attribute, what stood there), for `remove_short_names`; kept when this module is reloaded
_replaced: list[tuple[Any, str, Any]] = globals().get("_replaced", [])


def install_short_names() -> None:
    """Install the hook described at the top of this module. Changes nothing where it is installed."""
    if not _replaced:
        # The package's classes also take the Hub repositories of the six, which may hold nothing but the raw file.
        _replace(EupeNamesMixin, "load_by_name", staticmethod(functools.partial(_load_by_name, find_variant)))
        for cls in (AutoConfig, AutoImageProcessor, AutoProcessor, AutoVideoProcessor, AutoTokenizer, AutoBackbone):
            _wrap_from_pretrained(cls)
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


def _load_by_name(find: Callable, load: Callable, name: Any, /, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(name, str) or find(name) is None:
        return load(name, *args, **kwargs)
    folder = fetch(name, **{key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs})
    loaded = load(os.fspath(folder), *args, **kwargs)
    # What is saved, trained and shared from here on names the model, not a folder of this machine.
    first = loaded[0] if isinstance(loaded, tuple) else loaded
    for named in (first, getattr(first, "config", None)):
        if isinstance(named, PreTrainedModel | PreTrainedConfig):
            named.name_or_path = name
    return loaded


def _wrap_from_pretrained(cls: Any) -> None:
    original = cls.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(owner: type, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = pretrained_model_name_or_path
        if cls is AutoBackbone and isinstance(name, str) and name in VARIANTS:
            # AutoBackbone asks the Hub for the name first, even for a local folder
            return load_as_auto_model(owner, name, *args, **kwargs)
        return _load_by_name(VARIANTS.get, functools.partial(original, owner), name, *args, **kwargs)

    _replace(cls, "from_pretrained", classmethod(from_pretrained))


def _answer_lookups() -> None:
    # The functions are replaced where they are defined, for modules that import them later, and in the modules that
    # have imported them. `transformers.pipelines` may be loaded after this package: it takes the replaced ones from
    # `transformers.utils`, and its own `get_task` is replaced at the first question.
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
        found = (answer if known else original)(name, *args, **kwargs)
        if original.__name__ == "find_adapter_config_file" and found is not None:
            _check_adapter(name, Path(found))
        return found

    vars(lookup)[_MARK] = True
    return lookup


def _check_adapter(name: Any, file: Path) -> None:
    from eupe_hf.models.modeling_eupe_adapter import ADAPTER_CONFIG_NAME
    from eupe_hf.models.reading_eupe_adapter import base_of, read_lora

    is_ours = file.with_name(ADAPTER_CONFIG_NAME).is_file() and not file.with_name(CONFIG_NAME).is_file()
    if is_ours:
        base_of(read_lora(file), name)
