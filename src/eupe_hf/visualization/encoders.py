# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what an encoder sees in image files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from eupe_hf.data.rows import UnreadableError
from eupe_hf.features.extraction import ImageReader
from eupe_hf.features.tiling import tiled_feature_map
from eupe_hf.loading import load_encoder, load_processor
from eupe_hf.models.modeling_eupe import EupeBackbone, EupeModel
from eupe_hf.staging import check_outputs, output_names

from . import pictures


KINDS = ("pca", "similarity", "attention", "matches")


def draw(
    paths: Sequence[Path],
    output: Path,
    *,
    kind: str = "pca",
    model: str = "eupe-s",
    size: int = 512,
    patch: tuple[int, int] | None = None,
    layer: int = -1,
    tile: int | None = None,
    device: str | torch.device | None = None,
    sources: Sequence[str | os.PathLike] = (),
    overwrite: bool = False,
) -> Iterator[Path | UnreadableError]:
    """Draw what an encoder sees, one picture for each image file.

    Pictures are named after the image by `output_names`, with the kind at the end.

    Args:
        paths: The images.
        output: Folder for the pictures.
        kind: "pca", with one set of components, so that colours agree between the images; "similarity" to one patch;
            "attention" of the class token, a map per head (ViTs); "matches" between two images.
        model: A short name, a Hub id or a folder.
        size: Resize images to this height and width in pixels; larger gives finer maps.
        patch: Similarity: row and column of the patch, by default above the middle.
        layer: Attention: the block, from 0, or from the end.
        tile: Encode in tiles of this side in pixels that overlap by half; by default the image as a whole.
        device: See `eupe_hf.loading.pick_device`.
        sources: The files and folders in which `paths` were found.
        overwrite: Replace pictures that exist.

    Yields:
        First, for images that can't be read, why; then the pictures, as they are written.

    Raises:
        FileExistsError: A picture exists. Nothing was drawn then.
        OSError: The model was not found.
        ValueError: The kind, model or device is unknown; "matches" got other than two images, or one that can't be
            read; "attention" got a ConvNeXt or a tile; a patch or block does not exist; a size is not a multiple of
            the stride; or a picture would replace one of the images.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "matches" and len(paths) != 2:
        raise ValueError(f"Matches are drawn between two images, got {len(paths)}.")
    if kind == "attention" and tile is not None:
        raise ValueError("Attention spans the whole image, not tiles: leave the tile out.")
    files = [output / name for (name,) in output_names(paths, sources, [f"-{kind}.png"])]
    check_outputs(files[:1] if kind == "matches" else files, paths, overwrite)
    encoder = load_encoder(model, device, EupeModel if kind == "attention" else EupeBackbone)
    reader = ImageReader(load_processor(model, size))
    photographs, maps, wanted = [], [], []
    for path, file in zip(paths, files, strict=True):
        pixel_values = reader.read_or_reason(path)
        if isinstance(pixel_values, UnreadableError):
            if kind == "matches":
                raise pixel_values
            yield pixel_values
            continue
        photographs.append(pictures.read_photograph(path, reader.processor))
        with torch.inference_mode():
            maps.append(_map(encoder, pixel_values.to(encoder.device), layer, tile).cpu())
        wanted.append(file)
    drawn = _pictures(kind, photographs, maps, patch) if maps else iter(())
    for file, picture in zip(wanted, drawn, strict=kind != "matches"):
        pictures.save_picture(picture, file)
        yield file


def _map(encoder: EupeModel | EupeBackbone, pixel_values: torch.Tensor, layer: int, tile: int | None) -> torch.Tensor:
    """Feature map (C, H, W), or attention of the class token to the patches, (heads, H, W)."""
    if isinstance(encoder, EupeBackbone):
        if tile is not None:
            return tiled_feature_map(encoder, pixel_values, tile)[0]
        return encoder(pixel_values).feature_maps[-1][0]
    (attention,) = encoder.attention_maps(pixel_values, layers=(layer,), queries=[0])
    grid = [side // encoder.config.patch_size for side in pixel_values.shape[2:]]
    return attention[0, :, 0, encoder.config.num_prefix_tokens :].unflatten(1, grid)


def _pictures(
    kind: str, photographs: list[Image.Image], maps: list[torch.Tensor], patch: tuple[int, int] | None
) -> Iterator[Image.Image]:
    if kind == "matches":
        (first, second), grids = maps, [(one.shape[1], one.shape[2]) for one in maps]
        matches = pictures.mutual_matches(first, second)
        yield pictures.matches_picture(photographs[0], photographs[1], matches, (grids[0], grids[1]))
    elif kind == "pca":
        for photograph, colours in zip(photographs, pictures.pca_rgb(torch.stack(maps)), strict=True):
            yield pictures.side_by_side([photograph, pictures.rgb_picture(colours, photograph.size)])
    elif kind == "attention":
        for photograph, attention in zip(photographs, maps, strict=True):
            yield pictures.attention_picture(attention, photograph)
    else:
        for photograph, features in zip(photographs, maps, strict=True):
            grid = (features.shape[1], features.shape[2])
            row, column = patch or (grid[0] // 4, grid[1] // 2)
            heat = pictures.heat_picture(pictures.similarity_map(features, row, column), photograph)
            yield pictures.side_by_side([pictures.mark_patch(one, row, column, grid) for one in (photograph, heat)])
