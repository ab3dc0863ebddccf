# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an encoder back: to the layout of the published file, or to that of transformers' DINOv3.

For a task model, --output gets the encoder, and --head its head, as upstream's evaluation code saves it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser

from eupe_hf.conversion import convert_to_layout


EXAMPLE = """\
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output EUPE-ViT-S.pt
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output eupe-s-dinov3 --layout dinov3
  python conversion/convert_hf_to_eupe.py --checkpoint ade20k --output EUPE-ViT-S.pt --head head.pt
"""


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a converted folder, or one that a model saved"
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    with parser.exit_codes():
        done = convert_to_layout(args.checkpoint, args.output, layout=args.layout, head=args.head)
        print("\n".join(done.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
