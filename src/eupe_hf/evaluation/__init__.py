# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's evaluation protocols, their metrics, and results.

What goes here: metrics that take tensors, and protocols that take a model. All scores are fractions.
"""

from .knn import KNN_K, knn_accuracy, knn_predict
from .metrics import (
    NYU_EIGEN_CROP,
    ClassificationMetrics,
    CorrespondenceMetrics,
    DepthMetrics,
    SegmentationMetrics,
    average_precision,
    reduce_zero_label,
)
from .protocols import extract_features, match_keypoints, predict_depth, predict_keypoints, predict_label_map
from .results import EvaluationResult


__all__ = [
    "KNN_K",
    "NYU_EIGEN_CROP",
    "ClassificationMetrics",
    "CorrespondenceMetrics",
    "DepthMetrics",
    "EvaluationResult",
    "SegmentationMetrics",
    "average_precision",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "match_keypoints",
    "predict_depth",
    "predict_keypoints",
    "predict_label_map",
    "reduce_zero_label",
]
