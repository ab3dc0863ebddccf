# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of tensors, of what an encoder sees, and of what heads predict.

What goes here: everything that ends in a picture.
"""

from .pictures import attention_picture as attention_picture
from .pictures import boxes_picture as boxes_picture
from .pictures import class_colour as class_colour
from .pictures import depth_picture as depth_picture
from .pictures import heat_picture as heat_picture
from .pictures import mark_patch as mark_patch
from .pictures import matches_picture as matches_picture
from .pictures import mutual_matches as mutual_matches
from .pictures import pca_rgb as pca_rgb
from .pictures import read_photograph as read_photograph
from .pictures import rgb_picture as rgb_picture
from .pictures import segmentation_picture as segmentation_picture
from .pictures import side_by_side as side_by_side
from .pictures import similarity_map as similarity_map
from .predictions import class_scores as class_scores
from .predictions import prediction_picture as prediction_picture
