# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an encoder of this package back: to the layout of the published file, or to that of transformers' DINOv3.

Of a task model --output gets the encoder, and --head the head, as upstream's evaluation code saves it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eupe_hf.conversion import OptionError, convert_back


EXAMPLE = """example:
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output EUPE-ViT-S.pt
  python conversion/convert_hf_to_eupe.py --checkpoint eupe-s-converted --output eupe-s-dinov3 --layout dinov3
  python conversion/convert_hf_to_eupe.py --checkpoint ade20k --output EUPE-ViT-S.pt --head head.pt
"""


def make_parser() -> argparse.ArgumentParser:
    """What the user may ask for."""
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code; with an error that the user can mend it exits with 2."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        done = convert_back(args.checkpoint, args.output, args.layout, args.head)
    except OptionError as error:
        parser.error(str(error))
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n".join(done.lines()), file=sys.stdout if done.is_equal else sys.stderr)
    return 0 if done.is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
