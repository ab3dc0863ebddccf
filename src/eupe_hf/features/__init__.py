# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many or large images from a frozen encoder.

What goes here: computing, storing and searching global features, and feature maps in tiles.
"""

from .extraction import FeatureSummary as FeatureSummary
from .extraction import ImageBatch as ImageBatch
from .extraction import ImageReader as ImageReader
from .extraction import compute_features as compute_features
from .extraction import encode_images as encode_images
from .extraction import find_images as find_images
from .extraction import save_features as save_features
from .files import FeatureFile as FeatureFile
from .files import feature_table as feature_table
from .files import read_features as read_features
from .files import write_features as write_features
from .search import nearest_images as nearest_images
from .tiling import tiled_feature_map as tiled_feature_map
