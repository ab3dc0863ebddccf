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
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, logging

from .configuration_eupe import WEIGHTS_LICENSE, EupeConfig
from .configuration_eupe_llava import EupeLlavaConfig
from .configuration_eupe_multitask import EupeMultiTaskConfig
from .configuration_eupe_pyramid import EupePyramidConfig
from .image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil
from .modeling_eupe import EupeBackbone, EupeModel, EupePreTrainedModel
from .modeling_eupe_depth import EupeForDepthEstimation
from .modeling_eupe_detection import EupeForObjectDetection
from .modeling_eupe_image_classification import EupeForImageClassification
from .modeling_eupe_multitask import EupeForMultiTask
from .modeling_eupe_pyramid import EupePyramidBackbone
from .modeling_eupe_saving import HUB_IDS
from .modeling_eupe_segmentation import EupeForSegmentation
from .processing_eupe_llava import EupeLlavaProcessor
from .variants import VARIANTS, Variant, find_variant, get_variant


logger = logging.get_logger(__name__)

DISABLE_VARIABLE = "EUPE_HF_NO_SHORT_NAMES"
# Arguments of `from_pretrained` that say where to look; they are spent once the folder is known.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_DINOV3_TYPES = ("dinov3_vit", "dinov3_convnext")
_OWN_LAYOUT = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME]


# ---- finding a model ----


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Folder of a published encoder in this package's layout, downloaded and converted if need be.

    Looked for in this order: a folder of that name in the working directory; a model converted before; the Hub
    repository, be it in this package's layout, in that of transformers' DINOv3, or the raw `.pt` alone. A conversion
    is kept below the Hugging Face home, by revision and digest of the file, and made once, also where two processes
    start at once. What was converted before is taken without asking the Hub again; `force_download=True` asks.

    Args:
        name: A name of one of the six models, see `variant_config`.
        revision: Branch, tag or commit of the Hub repository; `None` is "main".
        token: Token for the Hub; `None` takes the stored one.
        cache_dir: Cache of downloads and conversions in place of the default.
        local_files_only: Do not ask the Hub.
        force_download: Download and convert anew.

    Returns:
        The folder.

    Raises:
        ValueError: Unknown name, or a checkpoint that is not this model (`CheckpointError`).
        OSError: Not to be had; the message says what was tried, and how to do it by hand.
    """
    if Path(name).is_dir():
        return Path(name)
    variant = get_variant(name)
    # Absolute, as huggingface_hub makes it: what is written down in the cache holds in any working directory.
    root = Path(constants.HF_HOME if cache_dir is None else cache_dir).expanduser().resolve()
    store = root / "eupe-hf" / variant.name
    reference = store / "refs" / quote(revision or "main", safe="")
    if not force_download and (folder := _converted(store, reference)):
        return folder
    store.mkdir(parents=True, exist_ok=True)
    arguments = {"revision": revision, "token": token, "cache_dir": cache_dir, "force_download": force_download}
    arguments["local_files_only"] = local_files_only
    with WeakFileLock(store / ".lock"):
        if not force_download and (folder := _converted(store, reference)):
            return folder  # another process made it while this one waited
        try:
            source = _download(variant, arguments)
        except (OSError, EntryNotFoundError, HTTPError, ValueError) as error:  # ValueError: a forced download failed
            raise OSError(_not_found(variant, revision, store, error)) from error
        logger.warning(
            f"The weights of {variant.name} come with the FAIR Noncommercial Research License, which covers "
            f"derivatives and outputs: {WEIGHTS_LICENSE['license_link']}"
        )
        folder = source if source.is_dir() else _convert(variant, source, store)
        # Only now: reading checkpoints needs more of transformers than loading a converted model does.
        from .checkpoints import staged_file

        with staged_file(reference) as file:
            file.write_text(os.fspath(folder), encoding="utf-8")
    return folder


def _converted(store: Path, reference: Path) -> Path | None:
    if reference.is_file():
        folder = Path(reference.read_text(encoding="utf-8"))
        if _is_complete(folder):
            return folder
    return None


def _is_complete(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and (folder / SAFE_WEIGHTS_NAME).is_file()


def _download(variant: Variant, arguments: dict[str, Any]) -> Path:
    """File with the weights in another layout; or the folder, where the repository is in ours."""
    try:
        config = Path(hf_hub_download(variant.repo_id, CONFIG_NAME, **arguments))
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except LocalEntryNotFoundError:
        # The Hub was not reached, or must not be asked: the raw file may be in the cache all the same.
        arguments = {**arguments, "local_files_only": True, "force_download": False}
        try:
            return _checked(hf_hub_download(variant.repo_id, variant.raw_file, **arguments))
        except LocalEntryNotFoundError:
            pass
        raise
    except EntryNotFoundError:
        model_type = None
    if model_type == EupeConfig.model_type:
        folder = Path(snapshot_download(variant.repo_id, allow_patterns=_OWN_LAYOUT, **arguments))
        if not _is_complete(folder):
            raise FileNotFoundError(f"{variant.repo_id} holds {CONFIG_NAME} without {SAFE_WEIGHTS_NAME}")
        return _checked(folder / SAFE_WEIGHTS_NAME).parent
    if model_type in _DINOV3_TYPES:
        return _checked(hf_hub_download(variant.repo_id, SAFE_WEIGHTS_NAME, **arguments))
    return _checked(hf_hub_download(variant.repo_id, variant.raw_file, **arguments))


def _checked(path: str | Path) -> Path:
    """Compare a download with its digest, which huggingface_hub does not do.

    A large file's entity tag is its sha256, and the cache names the file after it. Where the cache cannot link files
    there is nothing to compare with.
    """
    link = Path(path)
    blob = link.resolve()
    is_sha256 = len(blob.name) == 64 and set(blob.name) <= set("0123456789abcdef")
    if is_sha256 and (found := _sha256(blob)) != blob.name:
        blob.unlink()
        link.unlink(missing_ok=True)
        raise OSError(
            f"{link.name} was damaged on its way: its sha256 is {found}, the Hub announced {blob.name}. It was "
            "removed from the cache; load again to download it anew."
        )
    return link


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert(variant: Variant, source: Path, store: Path) -> Path:
    from .checkpoints import load_checkpoint, save_model_folder

    commit = source.parent.name  # .../snapshots/<commit>/<file>
    folder = store / f"{commit[:12]}-{_sha256(source)[:16]}"
    if not _is_complete(folder):
        # under the lock, so what lies here is left over from a run that was killed or a folder that was cleaned up
        for remains in (folder, *store.glob(".*.part")):
            shutil.rmtree(remains, ignore_errors=True)
        save_model_folder(load_checkpoint(source, variant.name), folder)
    return folder


def _not_found(variant: Variant, revision: str | None, store: Path, error: Exception) -> str:
    # Where the client turns what happened into advice about connections, the cause says more.
    is_advice = isinstance(error, (LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None
    told = error.__cause__ if is_advice else error
    reason = shorten(str(told) or type(told).__name__, 400, placeholder=" ...")
    file = variant.raw_file
    url = f"{constants.ENDPOINT}/{variant.repo_id}/resolve/{revision or 'main'}/{file}"
    return (
        f"{variant.name} is not to be had. Tried: a folder {variant.name!r} here: none; a model converted before, in "
        f"{store}: none for revision {revision or 'main'!r}; {variant.repo_id} on the Hub: {reason}\nBy hand: "
        f"download {url}, then run\n"
        f'  python -c "import eupe_hf; eupe_hf.convert_checkpoint({file!r}, {variant.name!r})"\n'
        f"where you load the model: from_pretrained({variant.name!r}) takes the folder this makes."
    )


# ---- teaching transformers ----

# (owner, attribute, what stood there), for `remove_short_names`; kept when this module is reloaded
_replaced: list[tuple[Any, str, Any]] = globals().get("_replaced", [])
_MARK = "_answers_short_names"


def register() -> None:
    """Enter the classes with transformers' Auto classes and install the hook for short names; may be called again."""
    AutoConfig.register(EupeConfig.model_type, EupeConfig, exist_ok=True)
    AutoModel.register(EupeConfig, EupeModel, exist_ok=True)
    AutoBackbone.register(EupeConfig, EupeBackbone, exist_ok=True)
    AutoConfig.register(EupePyramidConfig.model_type, EupePyramidConfig, exist_ok=True)
    AutoBackbone.register(EupePyramidConfig, EupePyramidBackbone, exist_ok=True)
    AutoModelForImageClassification.register(EupeConfig, EupeForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(EupeConfig, EupeForSegmentation, exist_ok=True)
    AutoModelForDepthEstimation.register(EupeConfig, EupeForDepthEstimation, exist_ok=True)
    AutoConfig.register(EupeMultiTaskConfig.model_type, EupeMultiTaskConfig, exist_ok=True)
    AutoModel.register(EupeMultiTaskConfig, EupeForMultiTask, exist_ok=True)
    AutoModelForObjectDetection.register(EupeConfig, EupeForObjectDetection, exist_ok=True)
    processors = {"torchvision": EupeImageProcessor, "pil": EupeImageProcessorPil}
    for config_class in (EupeConfig, EupeMultiTaskConfig, EupeLlavaConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    AutoConfig.register(EupeLlavaConfig.model_type, EupeLlavaConfig, exist_ok=True)
    AutoProcessor.register(EupeLlavaConfig, EupeLlavaProcessor, exist_ok=True)
    _register_lazily(AutoModel, EupeLlavaConfig, "EupeLlavaModel")
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        _register_lazily(auto_class, EupeLlavaConfig, "EupeLlavaForConditionalGeneration")
    HUB_IDS.update({name: variant.repo_id for variant in VARIANTS.values() for name in variant.synonyms})
    if os.environ.get(DISABLE_VARIABLE, "0") in ("", "0"):
        install_short_names()


def _register_lazily(auto_class: Any, config_class: Any, name: str) -> None:
    # `register` wants the class, whose module costs more to import than all others: LLaVA's and generation's come with
    # it. In the tables of transformers' own classes a name is enough, with the module to take it from.
    mapping, model_type = auto_class._model_mapping, config_class.model_type
    mapping._reverse_config_mapping[config_class.__name__] = model_type
    mapping._model_mapping[model_type] = name
    mapping._modules[model_type] = sys.modules[__package__]


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
    answers = {
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


__all__ = ["fetch", "install_short_names", "register", "remove_short_names"]
