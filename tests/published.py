# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The files that are published under the short names, with random values, and what tests of the Hub ask of them."""

import functools
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hub_server import HubServer, hub_environment

import eupe_hf
from eupe_hf import EupeModel, variant_config
from eupe_hf.conversion.layouts import from_eupe


REPO, FILE = "facebook/EUPE-ViT-T", "EUPE-ViT-T.pt"
URL = f"/{REPO}/resolve/main"
# What a load by the name "eupe-t" asks of the Hub where the cache is empty.
FETCHED = [("HEAD", f"{URL}/config.json"), ("HEAD", f"{URL}/{FILE}"), ("GET", f"{URL}/{FILE}")]
CODE_FILES = {"configuration_eupe.py", "image_processing_eupe.py", "modeling_eupe.py", "modeling_eupe_encoder.py"}
CODE_FILES |= {"modeling_eupe_vit.py", "modeling_eupe_convnext.py", "post_processing_eupe.py"}
CODE_FILES |= {"image_processing_eupe_targets.py", "modeling_eupe_adapter.py", "modeling_eupe_saving.py"}
SAVED_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} | CODE_FILES


@functools.cache
def checkpoint(name: str = "eupe-t", seed: int = 0) -> tuple[bytes, dict[str, torch.Tensor]]:
    """A raw file as it is published, with random values, and the tensors that a model loaded from it has."""
    config, generator = variant_config(name), torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in EupeModel(config).state_dict().items()}
    state = {key: 0.02 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    file = io.BytesIO()
    torch.save({key: tensor.clone() for key, tensor in from_eupe(state, config, "raw").items()}, file)
    return file.getvalue(), state


def assert_weights(model: torch.nn.Module, name: str = "eupe-t", seed: int = 0) -> None:
    """The tensors of a model are those of the file, bit for bit."""
    loaded, state = model.state_dict(), checkpoint(name, seed)[1]
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def converted_folder(server: HubServer, revision: str = "main", seed: int = 0) -> str:
    """Name of the folder to which `checkpoint(seed=seed)` is converted at a revision of its repository."""
    commit = server.repos[REPO].resolve(revision)
    return f"{commit[:12]}-{hashlib.sha256(checkpoint(seed=seed)[0]).hexdigest()[:16]}"


def files_below(folder: Path) -> set[str]:
    """The files in a folder and its subfolders, by their paths in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_python(program: str, server: HubServer, home: Path, token: str | None = None, **variables: str) -> list[Any]:
    """Run a program whose Hub is `server`, and return what it prints: JSON, one value a line."""
    environment = hub_environment(server, home, token) | {"PYTHONPATH": str(Path(eupe_hf.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
