# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an EUPE checkpoint to a folder that `from_pretrained` loads, and prove that no tensor changed.

With --head, a linear head from upstream's evaluation code joins the encoder: together they become one task model.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser
from huggingface_hub import HfApi

from eupe_hf.conversion import convert_checkpoint
from eupe_hf.conversion.checkpoints import PROJECTOR_FILE


EXAMPLE = """\
  python conversion/convert_eupe_to_hf.py --checkpoint EUPE-ViT-S.pt --output eupe-s-converted
  python conversion/convert_eupe_to_hf.py --checkpoint EUPE-ViT-S.pt --head head.pt --task segmentation --output ade20k
"""


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, EXAMPLE)
    source = "the encoder, in any of the three layouts"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE_OR_DIR", help=source)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_source_options()
    parser.add_argument(
        "--keep-projectors",
        action="store_true",
        help=f"keep the distillation adapters that some files carry, in DIR/{PROJECTOR_FILE}; they are not pushed",
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload the folder, to USER/NAME")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: make the repository private")
    return parser


def push(folder: Path, repo_id: str, private: bool) -> None:
    """Upload a converted model in one commit. Unlike publish.py, this does not look at what the repository holds."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    ignored = [PROJECTOR_FILE, ".*"]
    message = "Upload model with eupe-hf"
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=ignored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.private and not args.push_to_hub:
        parser.error("--private is an option of --push-to-hub; it needs --push-to-hub REPO")
    with parser.exit_codes():
        done = convert_checkpoint(
            args.checkpoint,
            args.output,
            variant=args.variant,
            head=args.head,
            task=args.task,
            layers=args.layers,
            keep_projectors=args.keep_projectors,
        )
        if args.push_to_hub:
            push(args.output, args.push_to_hub, args.private)
            done.notes.append(f"Pushed model and image processor to {args.push_to_hub}.")
        print("\n".join(done.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
