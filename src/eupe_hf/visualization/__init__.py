# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures: of tensors, of what an encoder sees, and of what heads predict.

What goes here: whatever ends in a picture.
"""

from .pictures import (
    attention_picture,
    boxes_picture,
    class_colour,
    class_scores,
    depth_picture,
    heat_picture,
    mark_patch,
    matches_picture,
    mutual_matches,
    pca_rgb,
    prediction_picture,
    rgb_picture,
    segmentation_picture,
    side_by_side,
    similarity_map,
)


__all__ = [
    "attention_picture",
    "boxes_picture",
    "class_colour",
    "class_scores",
    "depth_picture",
    "heat_picture",
    "mark_patch",
    "matches_picture",
    "mutual_matches",
    "pca_rgb",
    "prediction_picture",
    "rgb_picture",
    "segmentation_picture",
    "side_by_side",
    "similarity_map",
]
