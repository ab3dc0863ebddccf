# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What configurations, processors and models share: loading by name, and source files beside all that is saved."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save


# Names of the six models, in lower case, and their repositories on the Hub. The package fills it in.
HUB_IDS: dict[str, str] = {}


class EupeNamesMixin:
    """Loading by a name that only the package knows. Stands before transformers' class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; `import eupe_hf` adds the names of the six models."""
        parent: Any = super()
        return EupeNamesMixin.load_by_name(parent.from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @staticmethod
    def load_by_name(load: Callable, name: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call `load` with the folder of a name. The package replaces this: without it there are no names."""
        return load(name, *args, **kwargs)


class EupeCodeMixin:
    """Saving the source files that `trust_remote_code=True` needs. Stands before transformers' class."""

    # What `save_pretrained` writes just before an upload, as a pattern: all files of this folder have such names.
    _fresh_files = r"\w+_eupe\w*\.py"

    @classmethod
    def _published_class(cls) -> Any:
        # A subclass outside this folder stays where it is: its script is not ours to publish.
        here = __name__.rpartition(".")[0]
        return next(known for known in cls.__mro__ if known.__module__.rpartition(".")[0] == here)

    def _save_code(self, folder: str | os.PathLike) -> list[str]:
        """Copy the file of this class, and all that it imports, into a folder. Returns the copies."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return list(dict.fromkeys(map(os.fspath, custom_object_save(self._published_class(), folder))))

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        # transformers uploads what is newer than these; what was just written must go too
        parent: Any = super()
        timestamps = parent._get_files_timestamps(working_dir)
        return {name: time for name, time in timestamps.items() if not re.fullmatch(self._fresh_files, name)}


class EupeSavedProcessorMixin(EupeCodeMixin):
    """Processors that save their source files. Stands before transformers' class."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as transformers does, and the source files too. Returns the paths of the files."""
        sources = self._save_code(save_directory)
        parent: Any = super()
        return [*parent.save_pretrained(os.fspath(save_directory), push_to_hub=push_to_hub, **kwargs), *sources]
