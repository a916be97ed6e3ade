"""Which metrics a run reports when none are named."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_METRICS: Mapping[str, tuple[str, ...]] = {
    "segmentation": ("dice", "jaccard", "precision", "recall", "specificity", "f-measure", "mae"),
    # not fooled by a frequent class, and defined whichever classes the cases happen to hold
    "classification": ("balanced-accuracy", "accuracy", "f1", "auroc", "average-precision"),
    # the field's mean average precision: rare labels have no natural threshold
    "multilabel": ("average-precision", "auroc", "f1", "accuracy", "balanced-accuracy"),
    "frame_classification": ("frame-f1", "frame-accuracy", "segmental-f1", "edit-score"),
    # the last two where patients have a history
    "regression": (
        *("mae", "rmse", "r2", "squared-correlation", "bland-altman", "auroc-below", "mae-low"),
        *("auroc-worsened", "c-index"),
    ),
    # kappa says more but is NaN, or 0 whatever the model says, where validation holds a single grade
    "ordinal": ("grade-mae", "kappa", "accuracy", "f1"),
    # of frames where they are labelled, else of videos
    "anomaly": (
        "anomaly-auroc",
        "frame-auroc",
        "frame-ap",
        "video-auroc",
        "video-ap",
        "sensitivity-at-95-specificity",
        "detection-delay",
    ),
}
"""Of every task, the metrics in the order they are shown; the first is the one that chooses the best checkpoint."""

TWO_MEANINGS = ("precision", "recall", "mae")
"""What means one thing of pixels and another of cases: no default of a model that predicts masks and something else."""
