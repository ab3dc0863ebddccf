# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many images: computing, storing, searching, and finer maps by tiles.

What goes here: what a frozen encoder gives for many or large images.
"""

from .extraction import FeatureSummary, ImageBatch, ImageReader, encode_images, find_images, save_features
from .files import FORMATS, FeatureFile, feature_table, read_features, write_parquet
from .search import nearest_images
from .tiling import tiled_feature_map


__all__ = [
    "FORMATS",
    "FeatureFile",
    "FeatureSummary",
    "ImageBatch",
    "ImageReader",
    "encode_images",
    "feature_table",
    "find_images",
    "nearest_images",
    "read_features",
    "save_features",
    "tiled_feature_map",
    "write_parquet",
]
