# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's evaluation protocols, their metrics, and results.

Metrics take tensors, protocols take a model: neither loads one. All scores are fractions.
"""

from .correspondence import CorrespondenceMetrics, match_keypoints, predict_keypoints
from .knn import KNN_K, knn_accuracy, knn_predict
from .metrics import (
    NYU_EIGEN_CROP,
    ClassificationMetrics,
    DepthMetrics,
    SegmentationMetrics,
    average_precision,
    reduce_zero_label,
)
from .protocols import extract_features, predict_depth, predict_label_map
from .results import EvaluationResult
