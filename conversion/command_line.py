# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the conversion scripts share: their parser, the options of a source, and their exit codes."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError

from eupe_hf.conversion import ConversionError, OptionError
from eupe_hf.conversion.upstream_heads import TASKS
from eupe_hf.variants import VARIANTS


class Parser(argparse.ArgumentParser):
    """A parser whose help ends with an example, and that understands `--push_to_hub` as `--push-to-hub`."""

    def __init__(self, description: str | None, example: str):
        epilog, style = f"example:\n{example}", argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=style)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse the command line, or `args`. Bad options exit with code 2."""
        words = sys.argv[1:] if args is None else args
        spelled = [re.sub(r"^--[a-z_]+", lambda option: option[0].replace("_", "-"), word) for word in words]
        return super().parse_args(spelled, namespace)

    def add_source_options(self) -> None:
        """Add what a checkpoint must be, and the head to join with it."""
        self.add_argument("--variant", metavar="NAME", help=f"fail unless it is this model: {', '.join(VARIANTS)}")
        self.add_argument(
            "--head", type=Path, metavar="FILE", help="a head trained by upstream's evaluation code; needs --task"
        )
        self.add_argument("--task", choices=tuple(TASKS), help="with --head: what it was trained for")
        self.add_argument(
            "--layers",
            type=int,
            nargs="+",
            metavar="I",
            help="with --head: the blocks (ViT) or stages (ConvNeXt) it reads, from 0 (default: the last)",
        )

    @contextmanager
    def exit_codes(self) -> Iterator[None]:
        """Exit with 1 and a table if a conversion fails its proof, with 2 and a one-line message on bad input.

        After Ctrl-C, and if nobody reads the output any more, exit as the `eupe` command does: with 130 and 141.
        """
        try:
            yield
            sys.stdout.flush()
        except KeyboardInterrupt:
            self.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
            self.exit(141)
        except ConversionError as error:
            self.exit(1, "\n".join([*error.conversion.lines(), ""]))
        except OptionError as error:
            self.error(str(error))
        except (OSError, ValueError, HTTPError) as error:
            self.exit(2, f"{self.prog}: {' '.join(str(error).split())}\n")
