# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's evaluation protocols, their metrics, and results.

What goes here: metrics that take tensors, and protocols that take a model. All scores are fractions.
"""

from .correspondence import CorrespondenceMetrics as CorrespondenceMetrics
from .correspondence import match_keypoints as match_keypoints
from .correspondence import predict_keypoints as predict_keypoints
from .knn import KNN_K as KNN_K
from .knn import knn_accuracy as knn_accuracy
from .knn import knn_predict as knn_predict
from .metrics import NYU_EIGEN_CROP as NYU_EIGEN_CROP
from .metrics import ClassificationMetrics as ClassificationMetrics
from .metrics import DepthMetrics as DepthMetrics
from .metrics import SegmentationMetrics as SegmentationMetrics
from .metrics import average_precision as average_precision
from .metrics import reduce_zero_label as reduce_zero_label
from .protocols import extract_features as extract_features
from .protocols import predict_depth as predict_depth
from .protocols import predict_label_map as predict_label_map
from .results import EvaluationResult as EvaluationResult
