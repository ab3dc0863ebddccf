# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Finding a published encoder: a folder, a model converted before, or the Hub, with a download that is checked."""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, logging

from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE, EupeConfig
from eupe_hf.models.reading_eupe import CheckpointError, read_json
from eupe_hf.staging import full_disk, staged_file
from eupe_hf.variants import Variant, get_variant


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where to look: of no use once the folder is known.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_DINOV3_TYPES = ("dinov3_vit", "dinov3_convnext")
_ELSEWHERE = "Make room there, or name another folder: HF_HOME=FOLDER in the environment, or cache_dir=FOLDER."
_OWN_LAYOUT = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME]
_FOLDER = re.compile(r"[0-9a-f]+-[0-9a-f]{16}")  # of a conversion: commit, then digest of the file


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    verify: bool = False,
) -> Path:
    """Folder of a published encoder in this package's layout, downloaded and converted if necessary.

    The order: a folder of that name in the working directory; a model converted before; the Hub repository, which may
    hold this package's layout, that of transformers' DINOv3, or only the raw `.pt`. A conversion is kept below the
    Hugging Face home by revision and digest of the file, and made once even if two processes start together. A model
    converted before is used without a request to the Hub, unless you pass `force_download=True`.

    A conversion is kept with the digests of its files. They are compared if the size or the time of a file differs
    from what was noted with them, which costs nothing, or with `verify`. What has changed is converted again.

    Args:
        name: A name of one of the six models, see `variant_config`.
        revision: Branch, tag or commit of the Hub repository; `None` is "main".
        token: Token for the Hub; `None` takes the stored one.
        cache_dir: Cache of downloads and conversions in place of the default.
        local_files_only: Send no request to the Hub.
        force_download: Download and convert again.
        verify: Compare the digests of a model converted before, whatever its sizes and times: 0.2 s for the largest.

    Raises:
        ValueError: Unknown name, or a checkpoint of another model (`CheckpointError`).
        OSError: The model was not found; the message says what was tried, and how to convert it by hand. Or a disk is
            full; the message says which, and how much is needed.
    """
    variant = get_variant(name)
    if Path(name).is_dir():
        return Path(name)
    # absolute: paths in the cache hold in any working directory
    root = Path(constants.HF_HOME if cache_dir is None else cache_dir).expanduser().resolve()
    store = root / "eupe-hf" / variant.name
    reference = store / "refs" / quote(revision or "main", safe="")
    if not force_download and (folder := _converted(store, reference, verify)):
        return folder
    try:
        store.mkdir(parents=True, exist_ok=True)
        (store / ".lock").touch()
    except OSError as error:
        raise OSError(f"{store} cannot be written ({error.strerror}). {_ELSEWHERE}") from error
    given = (revision, token, cache_dir, local_files_only, force_download)
    arguments = dict(zip(HUB_ARGUMENTS, given, strict=True))
    with WeakFileLock(store / ".lock"):
        if not force_download and (folder := _converted(store, reference, verify)):
            return folder  # another process made it while this one waited
        downloads, size = Path(constants.HF_HUB_CACHE if cache_dir is None else root), 4 * variant.num_parameters
        try:
            source = _download(variant, arguments)
        except CheckpointError:
            raise
        except (OSError, EntryNotFoundError, HTTPError, ValueError) as error:  # ValueError: a forced download failed
            known = "not used, as you asked" if force_download else "changed since" if reference.is_file() else "none"
            if full := full_disk(error, downloads, size, f"the download of {variant.name}"):
                raise OSError(f"{full}. {_ELSEWHERE}") from error
            raise OSError(_not_found(variant, revision, f"{store}: {known}", error)) from error
        logger.warning(
            f"The weights of {variant.name} come with the FAIR Noncommercial Research License, which covers "
            f"derivatives and outputs: {WEIGHTS_LICENSE['license_link']}"
        )
        try:
            return _convert(variant, source, store, reference, force_download)
        except (OSError, SafetensorError) as error:
            if full := full_disk(error, store, size, f"the conversion of {variant.name}"):
                raise OSError(f"{full}. {_ELSEWHERE}") from error
            raise


def _converted(store: Path, reference: Path, verify: bool) -> Path | None:
    """The folder that a reference names, if it lies in the store and is as it was when it was converted."""
    name = reference.read_text(encoding="utf-8", errors="replace") if reference.is_file() else ""
    return store / name if _FOLDER.fullmatch(name) and _changed(store / name, verify) is None else None


def _record(folder: Path) -> Path:
    return folder.parent / "digests" / f"{folder.name}.json"


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _write_record(folder: Path, digests: dict[str, str]) -> None:
    values = {"sha256": digests, "stamps": {name: _stamp(folder / name) for name in digests}}
    with staged_file(_record(folder)) as file:
        file.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _changed(folder: Path, verify: bool) -> str | None:
    """What differs in a conversion from what was written, by size and time, or else by digest; `None` for nothing."""
    try:
        record = read_json(_record(folder))
        digests: dict[str, str] = record["sha256"]
        if not verify and record["stamps"] == {name: _stamp(folder / name) for name in digests}:
            return None
        changed = [name for name, digest in digests.items() if _sha256(folder / name) != digest]
    except OSError as error:
        return Path(error.filename or folder).name
    except (ValueError, LookupError, AttributeError):
        return _record(folder).name
    if not changed:
        with suppress(OSError):  # copied with other times, perhaps to where nothing can be written
            _write_record(folder, digests)
    return changed[0] if changed else None


def _download(variant: Variant, arguments: dict[str, Any]) -> Path:
    """File with the weights, in any layout."""
    try:
        config = read_json(_checked(hf_hub_download(variant.repo_id, CONFIG_NAME, **arguments)))
        model_type = config.get("model_type")
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
        if not (folder / SAFE_WEIGHTS_NAME).is_file():
            raise FileNotFoundError(f"{variant.repo_id} holds {CONFIG_NAME} without {SAFE_WEIGHTS_NAME}")
        return _checked(folder / SAFE_WEIGHTS_NAME)
    name = SAFE_WEIGHTS_NAME if model_type in _DINOV3_TYPES else variant.raw_file
    return _checked(hf_hub_download(variant.repo_id, name, **arguments))


def _checked(path: str | Path) -> Path:
    # huggingface_hub does not compare a download with its digest. The cache names a file after its entity tag: the
    # sha256 of a large file, the id in git of a small one. Only a cache without links has other names.
    link = Path(path)
    blob = link.resolve()
    kind = {40: "git id", 64: "sha256"}.get(len(blob.name)) if set(blob.name) <= set("0123456789abcdef") else None
    found = blob.name if kind is None else _sha256(blob) if kind == "sha256" else _git_id(blob)
    if found != blob.name:
        blob.unlink()
        link.unlink(missing_ok=True)
        raise OSError(
            f"{link.name} was damaged during the download: its {kind} is {found}, the Hub announced {blob.name}. The "
            "file was removed from the cache; load again to download it again."
        )
    return link


def _git_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert(variant: Variant, source: Path, store: Path, reference: Path, again: bool) -> Path:
    """Convert, unless it was done before for another revision. An older folder stays until the new one is proved."""
    commit = source.parent.name  # .../snapshots/<commit>/<file>
    folder = store / f"{commit[:12]}-{_sha256(source)[:16]}"
    _remove_remains(store, source.parents[2])
    changed = _changed(folder, verify=True) if folder.exists() else "all"
    if again or changed is not None:
        if changed not in (None, "all"):
            logger.warning(f"{changed} is missing or has changed since {folder} was converted: it is made again.")
        new = store / ".new.part"
        try:
            _convert_beside(variant, source, new)
            _replace(folder, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    with staged_file(reference) as file:
        file.write_text(folder.name, encoding="utf-8")
    return folder


def _convert_beside(variant: Variant, source: Path, output: Path) -> None:
    # Only now: reading checkpoints needs more of transformers than loading a converted model does.
    from eupe_hf.conversion import convert_checkpoint

    done = convert_checkpoint(source, output, variant=variant.name)
    if done.source.head:
        raise CheckpointError(
            f"{source} is a task model: its {next(iter(done.source.head))} does not belong to {variant.name}. Load it "
            "by the name of its own repository."
        )
    if done.source.layout == "eupe" and (processor := source.parent / IMAGE_PROCESSOR_NAME).is_file():
        read_json(_checked(processor))
        shutil.copyfile(processor, output / IMAGE_PROCESSOR_NAME)


def _replace(folder: Path, new: Path) -> None:
    digests, old = {path.name: _sha256(path) for path in sorted(new.iterdir())}, folder.with_name(".old.part")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    _write_record(folder, digests)


def _remove_remains(store: Path, repository: Path) -> None:
    """Remove what runs that were killed left in the store, which is locked, and in the cache of downloads."""
    for remains in list(store.rglob(".*.part")):
        shutil.rmtree(remains) if remains.is_dir() else remains.unlink(missing_ok=True)
    for unfinished in repository.glob("blobs/*.incomplete"):
        lock = repository.parent / ".locks" / repository.name / f"{unfinished.name.partition('.')[0]}.lock"
        with suppress(OSError), WeakFileLock(lock, timeout=0.1):  # held: somebody downloads it now
            unfinished.unlink()


def _not_found(variant: Variant, revision: str | None, converted: str, error: Exception) -> str:
    # Where the client only gives advice about connections, the cause says more.
    is_advice = isinstance(error, (LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None
    cause = error.__cause__ if is_advice else error
    reason = shorten(str(cause) or type(cause).__name__, 400, placeholder=" ...")
    file = variant.raw_file
    url = f"{constants.ENDPOINT}/{variant.repo_id}/resolve/{revision or 'main'}/{file}"
    return (
        f"{variant.name} was not found. Tried: a folder {variant.name!r} here: none; a model converted before, in "
        f"{converted} for revision {revision or 'main'!r}; {variant.repo_id} on the Hub: {reason}\nBy hand: "
        f"download {url}, then run\n"
        f'  python -c "import eupe_hf; eupe_hf.convert_checkpoint({file!r}, {variant.name!r})"\n'
        f"where you load the model: from_pretrained({variant.name!r}) takes the folder that this makes."
    )
