# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert a published EUPE checkpoint to a folder that `from_pretrained` loads, and prove that no tensor changed.

With --head also a linear head that upstream's evaluation code has trained: encoder and head become one task model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HTTPError
from transformers import AutoImageProcessor

from eupe_hf import EupeModel, EupePreTrainedModel, convert_checkpoint, convert_head
from eupe_hf.checkpoints import PROJECTOR_FILE, load_checkpoint
from eupe_hf.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.heads import TASKS, get_task, load_head
from eupe_hf.modeling_eupe_head import EupeTaskModel
from eupe_hf.variants import VARIANTS
from eupe_hf.verification import compare_tensors, format_table


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


def check_source_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where they do not go together."""
    if args.head and not args.task:
        parser.error(f"--head needs --task: {' or '.join(TASKS)}")
    if not args.head and (args.task or args.layers):
        parser.error("--task and --layers describe a head; they need --head FILE")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its way to end with an error, and what the user asked for."""
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
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload model and image processor, as USER/NAME")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: make the repository private")
    args = parser.parse_args(arguments)
    if args.private and not args.push_to_hub:
        parser.error("--private says how to push; it needs --push-to-hub REPO")
    check_source_options(parser, args)
    return parser, args


def push(model: EupePreTrainedModel, folder: Path, repo_id: str, private: bool) -> None:
    """Upload a converted model with its image processor, the code that loads it, and a card with the licence."""
    model.push_to_hub(repo_id, private=private)
    AutoImageProcessor.from_pretrained(folder).push_to_hub(repo_id, private=private)
    print(f"Pushed model and image processor to {repo_id}.")


def described_head(model: EupeTaskModel) -> str:
    """What a head reads and gives, in words."""
    layers = ", ".join(str(index - 1) for index in model.config.out_indices)
    convolution = model.head.linear.conv
    return f"from {convolution.in_channels} channels of layers {layers} to {convolution.out_channels}"


def convert(args: argparse.Namespace, output: Path, keep_projectors: bool = False) -> EupePreTrainedModel | None:
    """Convert what the options name, compare every tensor with its source, and say so.

    Args:
        args: With `checkpoint` and the options of `add_source_options`.
        output: The folder to write.
        keep_projectors: See `convert_checkpoint`.

    Returns:
        The model that the folder holds; `None`, after an explanation on stderr, if a tensor differs.
    """
    source = load_checkpoint(args.checkpoint, args.variant)
    if args.head:
        source = load_head(args.head, args.task, source, args.layers)
        convert_head(args.head, args.task, args.checkpoint, output, args.layers, args.variant, keep_projectors)
    else:
        convert_checkpoint(args.checkpoint, output, args.variant, keep_projectors)
    model_class = get_task(args.task).model_class if args.head else EupeModel
    model = model_class.from_pretrained(output, dtype="auto")
    written = model.state_dict()
    rows = compare_tensors(source.model_state, written)
    if not all(row.within(0) for row in rows):
        print(f"{format_table(rows, 0)}\n{output} differs from its source: do not use it.", file=sys.stderr)
        return None
    count = sum(tensor.numel() for tensor in written.values())
    name = source.variant.name if source.variant is not None else "an encoder of another size than the six"
    print(f"Read {args.checkpoint}: {name}, layout {source.layout}.")
    if args.head:
        print(f"Read {args.head}: a {args.task} head, {described_head(model)}.")
    elif source.head:
        print(f"{len(source.head)} tensors of the head of a task model: dropped.")
    print(f"Compared {len(rows)} tensors, {count:,} values: all equal to the source (max abs difference 0).")
    if source.projectors:
        action = (
            f"kept in {PROJECTOR_FILE}"
            if keep_projectors
            else "dropped (convert_eupe_to_hf.py --keep-projectors keeps them)"
        )
        print(f"{len(source.projectors)} tensors of the distillation adapters: {action}.")
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code; with an error that the user can mend it exits with 2."""
    parser, args = parse(arguments)
    try:
        model = convert(args, args.output, args.keep_projectors)
        if model is None:
            return 1
        if args.push_to_hub:
            push(model, args.output, args.push_to_hub, args.private)
    except (OSError, ValueError, HTTPError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"The weights are under the {WEIGHTS_LICENSE['license_name']}: {WEIGHTS_LICENSE['license_link']}")
    print(f"Done: {type(model).__name__}.from_pretrained({str(args.output)!r}) loads it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
