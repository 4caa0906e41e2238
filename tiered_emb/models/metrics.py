"""Quality of predicted probabilities, in numpy.

AUC is the Mann-Whitney statistic: the chance that a random positive is ranked above a random
negative, ties counting one half. O(n log n).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def auc(labels: npt.NDArray[np.generic], scores: Floats) -> float:
    """Area under the ROC curve; NaN if there is no positive or no negative.

    Example:
        >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
        0.875
    """
    positive = np.asarray(labels) > 0
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2.0
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def logloss(labels: npt.NDArray[np.generic], logits: Floats) -> float:
    """Mean binary cross entropy of logits, in nats; exact for large logits."""
    z = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels, dtype=np.float64)
    return float(np.mean(np.maximum(z, 0.0) - z * y + np.log1p(np.exp(-np.abs(z)))))
