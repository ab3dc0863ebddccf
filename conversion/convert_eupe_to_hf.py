# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert a published EUPE checkpoint to a folder that `from_pretrained` loads, and prove that no tensor changed.

With --head also a linear head that upstream's evaluation code has trained: encoder and head become one task model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from eupe_hf.conversion import OptionError, convert
from eupe_hf.conversion.checkpoints import PROJECTOR_FILE
from eupe_hf.conversion.upstream_heads import TASKS
from eupe_hf.variants import VARIANTS


EXAMPLE = """example:
  python conversion/convert_eupe_to_hf.py --checkpoint EUPE-ViT-S.pt --output eupe-s-converted
  python conversion/convert_eupe_to_hf.py --checkpoint EUPE-ViT-S.pt --head head.pt --task segmentation --output ade20k
"""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What a checkpoint may be checked against and joined with; publish.py takes the same."""
    parser.add_argument(
        "--variant", metavar="NAME", help=f"fail unless it is this model: {', '.join(VARIANTS)} (default: any of them)"
    )
    parser.add_argument(
        "--head", type=Path, metavar="FILE", help="a head trained by upstream's evaluation code; needs --task"
    )
    parser.add_argument("--task", choices=tuple(TASKS), help="with --head: what it was trained for")
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="I",
        help="with --head: the blocks (ViT) or stages (ConvNeXt) it reads, counted from 0 (default: the last)",
    )


def make_parser() -> argparse.ArgumentParser:
    """What the user may ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="the .pt, .pth or .safetensors file as published, or a folder in the layout of transformers' DINOv3",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    add_source_options(parser)
    parser.add_argument(
        "--keep-projectors",
        action="store_true",
        help=f"keep the distillation adapters that some files carry, in DIR/{PROJECTOR_FILE}; they are not pushed",
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload what was written, as USER/NAME")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: make the repository private")
    return parser


def push(folder: Path, repo_id: str, private: bool) -> None:
    """Upload a converted model, with its processor, code and card, in one commit; publish.py asks the Hub first."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    message = "Upload model with eupe-hf"
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=[PROJECTOR_FILE, ".*"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code; with an error that the user can mend it exits with 2."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.private and not args.push_to_hub:
        parser.error("--private says how to push; it needs --push-to-hub REPO")
    try:
        done = convert(
            args.checkpoint, args.output, args.variant, args.head, args.task, args.layers, args.keep_projectors
        )
        if args.push_to_hub and done.is_equal:
            push(args.output, args.push_to_hub, args.private)
            done.notes.append(f"Pushed model and image processor to {args.push_to_hub}.")
    except OptionError as error:
        parser.error(str(error))
    except (OSError, ValueError, HTTPError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n".join(done.lines()), file=sys.stdout if done.is_equal else sys.stderr)
    return 0 if done.is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
