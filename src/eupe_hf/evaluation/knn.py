# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""k-NN classification of features, at the scale of ImageNet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.utils import logging

from eupe_hf.extras import require

from .metrics import check_finite


KNN_K = (10, 20, 100, 200)
PIPELINE_TAGS = {"knn": "image-classification"}


@torch.no_grad()
def knn_predict(
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    queries: torch.Tensor,
    k: Sequence[int] = KNN_K,
    temperature: float = 0.07,
    query_chunk: int = 512,
    bank_chunk: int = 65536,
) -> dict[int, torch.Tensor]:
    """Classify by the k nearest neighbours, for all k at once (DINO, arXiv:2104.14294, and upstream's evaluation).

    Neighbours are found by cosine similarity, and each votes for its class with softmax(similarity / temperature).
    Beyond the features, memory holds one chunk of similarities, `query_chunk` x `bank_chunk`.

    Args:
        bank: (N, C) features with known classes, not normalised, on any device.
        bank_labels: (N,) class ids from 0.
        queries: (M, C) features to classify, on the device that computes.
        k: Numbers of neighbours, each at most N.
        temperature: Divides the similarities.
        query_chunk: Queries compared at once.
        bank_chunk: Bank features compared at once.

    Returns:
        For each k the class ids (M,); the lowest where classes have equal votes.

    Raises:
        ValueError: Shapes do not fit, a k is below 1 or above N, or features are not finite.
    """
    # scikit-learn's KNeighborsClassifier(metric="cosine", weights=...) votes alike, and the tests compare with it; but
    # it runs on the CPU only and searches the whole bank once for each k.
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or bank_labels.shape != bank.shape[:1]:
        raise ValueError(
            "bank must be (N, C), bank_labels (N,) and queries (M, C), got "
            f"{tuple(bank.shape)}, {tuple(bank_labels.shape)} and {tuple(queries.shape)}."
        )
    if not k or not 1 <= min(k) <= max(k) <= len(bank):
        raise ValueError(f"k must be from 1 to the {len(bank)} features of the bank, got {list(k)}.")
    check_finite(bank, "bank")
    check_finite(queries, "queries")
    num_classes = int(bank_labels.max()) + 1
    found: dict[int, list[torch.Tensor]] = {count: [] for count in k}
    for rows in logging.tqdm(queries.split(query_chunk), desc="neighbours"):
        rows = functional.normalize(rows.float(), dim=1)
        nearest, labels = rows.new_empty(len(rows), 0), bank_labels.new_empty(len(rows), 0, device=rows.device)
        for part, ids in zip(bank.split(bank_chunk), bank_labels.split(bank_chunk), strict=True):
            part = functional.normalize(part.to(rows.device).float(), dim=1)
            best = (rows @ part.T).topk(min(max(k), len(part)))
            nearest = torch.cat((nearest, best.values), dim=1)
            labels = torch.cat((labels, ids.to(rows.device)[best.indices]), dim=1)
            nearest, order = nearest.topk(min(max(k), nearest.shape[1]))
            labels = labels.gather(1, order)
        for count in found:
            weights = torch.softmax(nearest[:, :count] / temperature, dim=1)
            votes = weights.new_zeros(len(rows), num_classes).scatter_add_(1, labels[:, :count], weights)
            found[count].append(votes.argmax(dim=1))
    return {count: torch.cat(parts) for count, parts in found.items()}


def knn_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor, **options: Any
) -> dict[str, float]:
    """Accuracy of `knn_predict`, which takes the options, against class ids (M,): "accuracy@k" for each k.

    Raises:
        ValueError: See `knn_predict`; or there is not one label per query, or no query.
    """
    accuracy = require("sklearn.metrics").accuracy_score
    if labels.shape != queries.shape[:1] or not len(labels):
        raise ValueError(f"There must be queries with one label each, got {tuple(labels.shape)} for {len(queries)}.")
    found = knn_predict(bank, bank_labels, queries, **options)
    return {f"accuracy@{k}": float(accuracy(labels.cpu(), ids.cpu())) for k, ids in found.items()}
