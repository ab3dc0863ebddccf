# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Finding a published encoder: a folder, a model converted before, or the Hub, with a download that is checked."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, logging

from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE, EupeConfig
from eupe_hf.variants import Variant, get_variant


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where to look: of no use once the folder is known.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_DINOV3_TYPES = ("dinov3_vit", "dinov3_convnext")
_OWN_LAYOUT = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME]


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Folder of a published encoder in this package's layout, downloaded and converted if necessary.

    The order: a folder of that name in the working directory; a model converted before; the Hub repository, which may
    hold this package's layout, that of transformers' DINOv3, or only the raw `.pt`. A conversion is kept below the
    Hugging Face home by revision and digest of the file, and made once even if two processes start together. A model
    converted before is used without a request to the Hub, unless you pass `force_download=True`.

    Args:
        name: A name of one of the six models, see `variant_config`.
        revision: Branch, tag or commit of the Hub repository; `None` is "main".
        token: Token for the Hub; `None` takes the stored one.
        cache_dir: Cache of downloads and conversions in place of the default.
        local_files_only: Send no request to the Hub.
        force_download: Download and convert again.

    Raises:
        ValueError: Unknown name, or a checkpoint of another model (`CheckpointError`).
        OSError: The model was not found; the message says what was tried, and how to convert it by hand.
    """
    if Path(name).is_dir():
        return Path(name)
    variant = get_variant(name)
    # absolute: paths in the cache hold in any working directory
    root = Path(constants.HF_HOME if cache_dir is None else cache_dir).expanduser().resolve()
    store = root / "eupe-hf" / variant.name
    reference = store / "refs" / quote(revision or "main", safe="")
    if not force_download and (folder := _converted(reference)):
        return folder
    store.mkdir(parents=True, exist_ok=True)
    given = (revision, token, cache_dir, local_files_only, force_download)
    arguments = dict(zip(HUB_ARGUMENTS, given, strict=True))
    with WeakFileLock(store / ".lock"):
        if not force_download and (folder := _converted(reference)):
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
        from eupe_hf.staging import staged_file

        with staged_file(reference) as file:
            file.write_text(os.fspath(folder), encoding="utf-8")
    return folder


def _converted(reference: Path) -> Path | None:
    folder = Path(reference.read_text(encoding="utf-8")) if reference.is_file() else None
    return folder if folder is not None and _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and (folder / SAFE_WEIGHTS_NAME).is_file()


def _download(variant: Variant, arguments: dict[str, Any]) -> Path:
    """File with the weights in another layout; or the folder, if the repository has ours."""
    try:
        config = Path(hf_hub_download(variant.repo_id, CONFIG_NAME, **arguments))
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except LocalEntryNotFoundError:
        # No answer from the Hub, or no request allowed: the raw file may be in the cache all the same.
        arguments = {**arguments, "local_files_only": True, "force_download": False}
        with suppress(LocalEntryNotFoundError):
            return _checked(hf_hub_download(variant.repo_id, variant.raw_file, **arguments))
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
    # huggingface_hub does not compare a download with its digest. A large file's entity tag is its sha256, after which
    # the cache names the file; only a cache without links has other names.
    link = Path(path)
    blob = link.resolve()
    is_sha256 = len(blob.name) == 64 and set(blob.name) <= set("0123456789abcdef")
    if is_sha256 and (found := _sha256(blob)) != blob.name:
        blob.unlink()
        link.unlink(missing_ok=True)
        raise OSError(
            f"{link.name} was damaged during the download: its sha256 is {found}, the Hub announced {blob.name}. The "
            "file was removed from the cache; load again to download it again."
        )
    return link


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert(variant: Variant, source: Path, store: Path) -> Path:
    from eupe_hf.conversion import convert_checkpoint

    commit = source.parent.name  # .../snapshots/<commit>/<file>
    folder = store / f"{commit[:12]}-{_sha256(source)[:16]}"
    if not _is_complete(folder):
        # under the lock, so what lies here is left over from a run that was killed or a folder that was cleaned up
        for remains in (folder, *store.glob(".*.part")):
            shutil.rmtree(remains, ignore_errors=True)
        convert_checkpoint(source, folder, variant=variant.name)
    return folder


def _not_found(variant: Variant, revision: str | None, store: Path, error: Exception) -> str:
    # Where the client only gives advice about connections, the cause says more.
    is_advice = isinstance(error, (LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None
    cause = error.__cause__ if is_advice else error
    reason = shorten(str(cause) or type(cause).__name__, 400, placeholder=" ...")
    file = variant.raw_file
    url = f"{constants.ENDPOINT}/{variant.repo_id}/resolve/{revision or 'main'}/{file}"
    return (
        f"{variant.name} was not found. Tried: a folder {variant.name!r} here: none; a model converted before, in "
        f"{store}: none for revision {revision or 'main'!r}; {variant.repo_id} on the Hub: {reason}\nBy hand: "
        f"download {url}, then run\n"
        f'  python -c "import eupe_hf; eupe_hf.convert_checkpoint({file!r}, {variant.name!r})"\n'
        f"where you load the model: from_pretrained({variant.name!r}) takes the folder that this makes."
    )
