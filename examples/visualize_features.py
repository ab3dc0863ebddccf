# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Draw what an EUPE encoder sees in a photograph. `make demo` runs this.

    python examples/visualize_features.py --model eupe-s --image examples/images/astronaut.jpg --output demo_output

It writes two pictures:

- `pca.png`: the first three principal components of the patch features as colours (as figure 4 of the paper);
- `similarity.png`: the similarity of every patch to one patch, framed in white.

The published weights come from the Hugging Face Hub. If the Hub cannot be reached, and you named one of the six
models, the script makes a raw checkpoint with random weights, converts it, and says so: the pictures then show how the
script works, not what the model sees.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import logging as transformers_logging
from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf import VARIANTS, EupeBackbone, EupeModel, convert_checkpoint, variant_config
from eupe_hf.conversion.layouts import from_eupe
from eupe_hf.loading import load_encoder, load_processor
from eupe_hf.visualization import (
    heat_picture,
    mark_patch,
    pca_rgb,
    read_photograph,
    rgb_picture,
    side_by_side,
    similarity_map,
)


HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/visualize_features.py --model eupe-convnext-t --image photo.jpg",
    )
    parser.add_argument("--model", default="eupe-s", help="a short name, a Hub id or a folder (default: eupe-s)")
    parser.add_argument("--image", type=Path, default=HERE / "images" / "astronaut.jpg", help="the photograph")
    parser.add_argument("--size", type=int, default=512, help="resize the photograph to this side (default: 512)")
    parser.add_argument("--patch", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="the patch to compare with")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the pictures")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args()


def load(name: str, size: int, device: str | None) -> tuple[EupeBackbone, BaseImageProcessor, str]:
    """Load the encoder and its image processor; without the Hub, random weights, and a warning for the pictures."""
    # without the Hub the client tries for half a minute, and would report each try
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        print(f"Loading {name} (the first time from the Hub, which may take a moment) ...")
        return load_encoder(name, device, EupeBackbone), load_processor(name, size), ""
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        if name not in VARIANTS:
            sys.exit(f"Cannot load {name}: {error}")
    print(
        f"The weights of {name} were not found: the Hub cannot be reached and nothing is cached.\n"
        "This demo makes a raw checkpoint with RANDOM weights and converts it: the pictures show that the script\n"
        "works, not what the model sees."
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        raw, folder = Path(scratch) / VARIANTS[name].raw_file, Path(scratch) / name
        model = EupeModel(variant_config(name, layerscale_value=1.0))
        torch.save(from_eupe(model.state_dict(), model.config, "raw"), raw)
        print(f"  made {raw.name} ({raw.stat().st_size / 1e6:.0f} MB), converting it ...")
        convert_checkpoint(raw, folder)
        backbone, processor = load_encoder(str(folder), device, EupeBackbone), load_processor(str(folder), size)
        return backbone, processor, "random weights: "


def main() -> None:
    """Load, encode, draw, save."""
    arguments = parse_arguments()
    if not arguments.image.is_file():
        sys.exit(f"There is no image at {arguments.image}.")

    # 1. Load an encoder and its image processor.
    backbone, processor, warning = load(arguments.model, arguments.size, arguments.device)

    # 2. Encode the photograph.
    try:
        inputs = processor(arguments.image, return_tensors="pt").to(backbone.device)
    except ValueError as error:
        sys.exit(str(error))
    start = time.perf_counter()
    with torch.inference_mode():
        feature_map = backbone(**inputs).feature_maps[-1].cpu()  # (1, C, H, W)
    _, channels, rows, columns = feature_map.shape
    seconds = time.perf_counter() - start
    print(f"Encoded {arguments.image.name} in {seconds:.2f} s: {rows} x {columns} patches of {channels} features.")

    # 3. Draw the principal components, and the similarity to one patch.
    row, column = arguments.patch or (rows // 4, columns // 2)
    photograph = read_photograph(arguments.image, processor)
    components = rgb_picture(pca_rgb(feature_map)[0], photograph.size)
    similarity = similarity_map(feature_map[0], row, column)
    heat = mark_patch(heat_picture(similarity, photograph), row, column, (rows, columns))
    marked = mark_patch(photograph, row, column, (rows, columns))

    # 4. Save.
    arguments.output.mkdir(parents=True, exist_ok=True)
    sheets = {
        "pca.png": side_by_side([photograph, components], f"{warning}{arguments.model}, principal components"),
        "similarity.png": side_by_side([marked, heat], f"{warning}{arguments.model}, similarity to the framed patch"),
    }
    for name, sheet in sheets.items():
        sheet.save(arguments.output / name)
        print(f"Saved {arguments.output / name}")


if __name__ == "__main__":
    main()
