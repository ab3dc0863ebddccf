# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of tensors, of what an encoder sees, and of what heads predict.

Code that ends in a picture belongs here.
"""

from .pictures import (
    attention_picture,
    boxes_picture,
    class_colour,
    depth_picture,
    heat_picture,
    mark_patch,
    matches_picture,
    mutual_matches,
    pca_rgb,
    read_photograph,
    rgb_picture,
    segmentation_picture,
    side_by_side,
    similarity_map,
)
from .predictions import class_scores, prediction_picture
