# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many or large images from a frozen encoder.

Code that computes, stores and searches global features belongs here, and feature maps in tiles.
"""

from eupe_hf.data.images import find_images

from .extraction import (
    FeatureSummary,
    ImageBatch,
    ImageReader,
    compute_features,
    encode_images,
    save_features,
)
from .files import FeatureFile, feature_table, read_features, write_features
from .search import nearest_images
from .tiling import tiled_feature_map
