# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Check that an encoder computes what the original code computed, or what another checkpoint does.

The exit code is 0 if every output is the same within the tolerance, 1 if not, and 2 if nothing could be compared.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser

from eupe_hf.conversion import verify
from eupe_hf.conversion.verification import format_table


EXAMPLE = """\
  python conversion/verify_conversion.py --checkpoint eupe-s-converted --against EUPE-ViT-S.pt
  python conversion/verify_conversion.py --checkpoint raw.pt --golden golden/eupe_vits16.safetensors --tolerance 1e-5
"""


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, EXAMPLE)
    source = "the encoder, in any of the three layouts"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE_OR_DIR", help=source)
    reference = parser.add_mutually_exclusive_group(required=True)
    reference.add_argument(
        "--golden", type=Path, metavar="FILE", help="outputs recorded from the original code, .safetensors"
    )
    reference.add_argument(
        "--against", type=Path, metavar="FILE_OR_DIR", help="another checkpoint, in any of the three layouts"
    )
    parser.add_argument("--variant", metavar="NAME", help="fail unless both are this model, for example eupe-s")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest absolute error that passes (default: %(default)s)"
    )
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not args.tolerance >= 0:
        parser.error(f"--tolerance must be 0 or more, got {args.tolerance}")
    with parser.exit_codes():
        rows = verify(args.checkpoint, args.against, golden=args.golden, variant=args.variant, device=args.device)
        print(format_table(rows, args.tolerance))
    return 0 if all(row.within(args.tolerance) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
