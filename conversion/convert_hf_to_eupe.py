# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an encoder of this package back: to the layout of the published file, or to that of transformers' DINOv3.

Of a task model --output gets the encoder, and --head the head, as upstream's evaluation code saves it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eupe_hf.checkpoints import load_checkpoint, save_layout
from eupe_hf.heads import load_head, raw_head, save_head
from eupe_hf.verification import compare_tensors, format_table


EXAMPLE = """example:
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output EUPE-ViT-S.pt
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output eupe-s-dinov3 --layout dinov3
  python conversion/convert_hf_to_eupe.py --checkpoint ade20k --output EUPE-ViT-S.pt --head head.pt
"""


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its way to end with an error, and what the user asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="the converted folder, or one saved from a model"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE_OR_DIR",
        help="raw: the file to write, .pt or .safetensors; dinov3: the folder",
    )
    parser.add_argument(
        "--layout",
        choices=("raw", "dinov3"),
        default="raw",
        help="raw: as published (default); dinov3: what DINOv3ViTModel and DINOv3ConvNextModel load",
    )
    parser.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        help="also write the head of an EupeForSegmentation or EupeForDepthEstimation, .pt or .safetensors",
    )
    args = parser.parse_args(arguments)
    if args.head and args.head.absolute() == args.output.absolute():
        parser.error("--output and --head must be two files: the encoder's and the head's")
    return parser, args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code; with an error that the user can mend it exits with 2."""
    parser, args = parse(arguments)
    try:
        source = load_checkpoint(args.checkpoint)
        if args.head:
            save_head(source, args.head)
        save_layout(source, args.output, args.layout)
        written = load_checkpoint(args.output, config=source.config)
        rows = compare_tensors(source.state, written.state)
        if args.head:
            layers = [index - 1 for index in source.config.out_indices]
            task = raw_head(source)[1].name
            rows += compare_tensors(source.head, load_head(args.head, task, written, layers).head)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if not all(row.within(0) for row in rows):
        print(f"{format_table(rows, 0)}\n{args.output} differs from its source: do not use it.", file=sys.stderr)
        return 1
    print(f"Compared {len(rows)} tensors: all equal to the source (max abs difference 0).")
    if source.projectors:
        action = "written with the rest" if args.layout == "raw" else "left out, this layout has no place for them"
        print(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    if source.head:
        action = f"written to {args.head}" if args.head else "left out (--head FILE writes them)"
        print(f"{len(source.head)} tensors of the head: {action}.")
    print(f"Done: {args.output} holds the encoder in layout {args.layout}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
