# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Search by image similarity."""

import torch
from torch.nn import functional

from .files import FeatureFile


def nearest_images(index: FeatureFile, query: torch.Tensor, count: int = 10) -> list[tuple[str, float]]:
    """Find the images whose global features are most similar to a query.

    Args:
        index: Features of the images to search.
        query: (C,), computed by the same model.
        count: Largest number of images to return.

    Returns:
        Paths with their cosine similarities, the most similar first.

    Raises:
        ValueError: The widths differ, or the index is empty.
    """
    if not index.paths:
        raise ValueError("The index holds no images: none could be read when it was made.")
    if query.shape != index.features.shape[1:]:
        raise ValueError(
            f"The query has shape {tuple(query.shape)}, a feature of the index {tuple(index.features.shape[1:])}: "
            f"compute both with one model, {index.model or 'the same'}."
        )
    similarity = functional.cosine_similarity(index.features, query[None].float().cpu())
    best = similarity.topk(min(count, len(similarity)))
    return [(index.paths[i], value) for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
