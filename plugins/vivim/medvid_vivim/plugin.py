"""What this distribution offers. Imports no torch."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, LossSpec, ModelSpec

MEDVID_PLUGIN_API = (1, 0)

_PAPER = "Yang et al., Vivim: a Video Vision Mamba for Medical Video Segmentation, IEEE TCSVT 2025"

_RECIPE = {
    "loss": "structure",
    "metrics": ("dice", "jaccard", "precision", "recall", "specificity", "f-measure", "mae"),
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "cosine",
    "schedule.unit": "epoch",
    "schedule.final_lr": 1e-6,
    "train.epochs": 200,
    "clip.sampling": "dense",
    "augment.horizontal_flip": 0.5,
    "augment.vertical_flip": 0.5,
    "augment.brightness": 0.5,
    "augment.contrast": 0.5,
    "train.batch_size": 8,
}

_TINY = {
    "model.depths": (1, 1, 1, 1),
    "model.widths": (4, 4, 8, 8),
    "model.heads": (1, 1, 2, 2),
    "model.decoder_width": 8,
    "model.mamba_depths": (1, 1, 1, 1),
    "model.state_size": 2,
    "clip.frames": 3,
    "clip.size": (32, 32),
    "optimizer.lr": 1e-2,
    "train.batch_size": 2,
    "loss.frames": "all",
}

_SMALL = {
    "model.depths": (1, 1, 1, 1),
    "model.widths": (16, 32, 64, 96),
    "model.heads": (1, 2, 4, 6),
    "model.decoder_width": 64,
    "model.mamba_depths": (1, 1, 1, 1),
    "clip.frames": 4,
    "clip.size": (96, 96),
    "clip.sampling": "random",
    "clip.per_case": 4,
    "augment.horizontal_flip": 0.0,
    "augment.vertical_flip": 0.0,
    "augment.rotation_deg": 10.0,
    "augment.scale": 0.1,
    "optimizer.lr": 2e-3,
    "schedule.unit": "step",
    "train.epochs": 6,
    "train.batch_size": 4,
    "train.evaluate_every": 2,
    "loss.frames": "all",
}

# the loss teaches the centre frame of a clip alone, so that frame alone is used of it
_FULL = {"model.variant": "mit_b3", "clip.frames": 5, "clip.size": (256, 256), "clip.blend": "centre"}

# as the original's code trains: 200 epochs of the recipe, colours drawn for every frame by itself, scored at 256x256
_AS_RELEASED = {
    **_FULL,
    "augment.saturation": 1.0,
    "augment.sharpness": 2.0,
    "augment.colour_per_frame": True,
    "train.evaluate_every": 5,
    "evaluate.at": "model",
    "metrics": (
        *("threshold-mean-dice", "threshold-mean-jaccard", "threshold-mean-precision", "threshold-mean-recall"),
        *("threshold-mean-specificity", "s-measure", "e-measure", "stretched-mae", "dice", "jaccard"),
    ),
}

# as the paper says: its edge branch, shorter, smaller batches, and the measures of its tables
_AS_IN_THE_PAPER = {
    **_FULL,
    "model.edge": True,
    "model.edge_head": "paper",
    "loss.edge": "paper",
    "train.epochs": 100,
    "train.batch_size": 4,
    "metrics": (
        *("dice", "jaccard", "precision", "recall", "threshold-max-dice", "threshold-max-specificity"),
        *("threshold-max-jaccard", "s-measure", "e-measure", "stretched-mae"),
    ),
}

# as the ovarian extension trains, but for what it means and does not do: see the docs
_OVARIAN = {
    **_FULL,
    "model.mamba_drop_path": 0.2,
    "model.mamba_drop_path_by": "stage",
    "model.map_dropout": 0.15,
    "model.decoder_dropout": 0.19,
    "model.channel_dropout": 0.3,
    "loss": "focal-tversky",
    "metrics": ("dice-present", "jaccard-present", "precision-present", "recall-present", "dice", "jaccard"),
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 1e-2,
    "train.epochs": 100,
    "train.batch_size": 3,
    "clip.sampling": "all",
    "clip.blend": "mean",  # every frame of a clip is taught
    "augment.preset": "medium",
}


@hookimpl
def medvid_models() -> list[ModelSpec]:
    """Vivim."""
    return [
        ModelSpec(
            name="vivim",
            tasks=("segmentation",),
            build="medvid_vivim.network:build",
            config="medvid_vivim.config:VivimConfig",
            presets={
                "tiny": _TINY,
                "small": _SMALL,
                "full": _FULL,
                "released": _AS_RELEASED,
                "paper": _AS_IN_THE_PAPER,
                "ovarian": _OVARIAN,
            },
            clip=ClipSpec(frames=5, size=(256, 256)),
            recipe=_RECIPE,
            importers={
                "upstream": "medvid_vivim.importer:import_upstream",
                "segformer": "medvid_vivim.importer:import_segformer",
            },
            upstream_config="medvid_vivim.config:from_upstream",
            trainable={
                "decoder": ("decoder.", "out.", "edgeocr_cls_head."),
                "temporal": ("encoder.stages.", "decoder.", "out.", "edgeocr_cls_head."),
            },
            keep_fp32=("*.A_log", "*.A_b_log", "*.A_s_log", "*.D", "*.D_b", "*.D_s"),
            unused_parameters=("edgeocr_cls_head.*",),  # loss.edge=none does not read it
            shard_units=("SegformerLayer", "MambaLayer"),
            card=Card(
                summary=(
                    "SegFormer encoder with Mamba layers over the whole clip at the end of every stage (scanned "
                    "forwards, backwards and along time), all-MLP decoder; masks of every frame."
                ),
                paper=_PAPER,
                upstream="https://github.com/scott-yjyang/Vivim",
                code_license="Apache-2.0 (written anew from a description; the original's code is CC BY-NC 4.0)",
                weights_license=(
                    "none included. Weights trained with the original fall under its CC BY-NC 4.0; NVIDIA's SegFormer "
                    "weights have terms of their own, for non-commercial use"
                ),
                reproduced=(
                    "outputs and gradients of the original's code for the same weights, to float32 rounding. The "
                    "paper's scores are not: its trained weights and two of its data sets' loaders are not published"
                ),
            ),
        )
    ]


@hookimpl
def medvid_losses() -> list[LossSpec]:
    """The structure loss, with the terms of the edge branch on demand."""
    return [
        LossSpec(
            name="structure",
            tasks=("segmentation",),
            build="medvid_vivim.losses:build_structure",
            config="medvid_vivim.config:StructureLossConfig",
            card=Card(
                summary=(
                    "Cross-entropy plus boundary-weighted intersection over union, on the middle frame of a clip or on "
                    "all; with loss.edge also the terms of Vivim's edge branch."
                ),
                paper="Wei et al., F3Net, AAAI 2020; as computed by Vivim",
                code_license="Apache-2.0",
            ),
        )
    ]
