"""What core itself offers, through the same hooks as every plugin."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, DatasetSpec, LossSpec, MetricSpec, ModelSpec

MEDVID_PLUGIN_API = (1, 0)

_DENSE_TASKS = ("segmentation",)
_LICENSE = "Apache-2.0"


@hookimpl
def medvid_models() -> list[ModelSpec]:
    """The baseline that video models must beat."""
    return [
        ModelSpec(
            name="unet",
            tasks=_DENSE_TASKS,
            build="medvid_core.networks.unet:build",
            config="medvid_core.networks.config:UNetConfig",
            clip=ClipSpec(frames=5, size=(256, 256), multiple=16),
            presets={
                "tiny": {"model.channels": (4, 8), "clip.frames": 3, "clip.size": (32, 32), "train.batch_size": 2},
                "small": {
                    "model.channels": (16, 32, 64, 128),
                    "clip.frames": 4,
                    "clip.size": (96, 96),
                    "optimizer.lr": 2e-3,
                    "train.epochs": 20,
                    "train.batch_size": 4,
                },
                "full": {},
            },
            recipe={
                "loss": "dice-ce",
                "metrics": ("dice", "jaccard", "precision", "recall", "specificity", "f-measure", "mae"),
                "train.epochs": 100,
            },
            card=Card(
                summary="U-Net applied to each frame by itself: the baseline without time.",
                paper="Ronneberger et al., MICCAI 2015; residual units as in Kerfoot et al., STACOM 2018",
                upstream="MONAI, monai.networks.nets.UNet",
                code_license="Apache-2.0",
            ),
        )
    ]


@hookimpl
def medvid_datasets() -> list[DatasetSpec]:
    """The embedded phantom and the layouts that are read."""
    module = "medvid_core.data.datasets"
    return [
        DatasetSpec(
            name="echo-phantom",
            tasks=_DENSE_TASKS,
            index=f"{module}.echo_phantom:index",
            config="medvid_core.data.phantoms.echo:EchoPhantomConfig",
            card=Card(
                summary="Beating hearts in ultrasound, drawn on the fly: nothing to download", code_license="Apache-2.0"
            ),
        ),
        DatasetSpec(
            name="vtus",
            tasks=_DENSE_TASKS,
            can_read=f"{module}.vtus:can_read",
            index=f"{module}.vtus:index",
            config=f"{module}.vtus:VTUSConfig",
            # few sweeps, each of one nodule in one place: without these a network learns the place
            defaults={
                "clip.sampling": "dense",
                "augment.horizontal_flip": 0.5,
                "augment.vertical_flip": 0.5,
                "augment.scale": 0.4,
                "augment.translate": 0.25,
                "augment.brightness": 0.5,
                "augment.contrast": 0.5,
            },
            card=Card(
                summary="Frames and masks: Train/<case>/*.jpg, Train_GT/<case>/*.png, Test/…, Test_GT/….",
                paper="Yang et al., Vivim, IEEE TCSVT 2025 (thyroid ultrasound, VTUS)",
                upstream="https://github.com/scott-yjyang/Vivim",
                code_license="Apache-2.0",
                data_license="CC BY-NC 4.0",
            ),
        ),
        DatasetSpec(
            name="vos",
            tasks=_DENSE_TASKS,
            can_read=f"{module}.vos:can_read",
            index=f"{module}.vos:index",
            config=f"{module}.vos:VOSConfig",
            card=Card(
                summary="Frames and sparse masks: JPEGImages/<case>/*, Annotations/<case>/*.png, ImageSets/*.txt.",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="videos",
            tasks=_DENSE_TASKS,
            can_read=f"{module}.videos:can_read",
            index=f"{module}.videos:index",
            config=f"{module}.videos:VideosConfig",
            card=Card(
                summary="Video files, each with a mask video name_mask.* or a folder name_mask/ beside it.",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="manifest",
            tasks=("segmentation", "classification"),
            can_read=f"{module}.manifest:can_read",
            index=f"{module}.manifest:index",
            config=f"{module}.manifest:ManifestConfig",
            card=Card(
                summary="A CSV table: file, mask or label, case_id, group_id, split, fps; other columns are metadata.",
                code_license="Apache-2.0",
            ),
        ),
    ]


@hookimpl
def medvid_losses() -> list[LossSpec]:
    """Cross-entropy, soft Dice and their sum."""
    module = "medvid_core.losses.segmentation"
    return [
        LossSpec(
            name="cross-entropy",
            tasks=_DENSE_TASKS,
            build=f"{module}:build_cross_entropy",
            config="medvid_core.losses.config:CrossEntropyConfig",
            card=Card(summary="Pixel-wise cross-entropy.", code_license=_LICENSE),
        ),
        LossSpec(
            name="dice",
            tasks=_DENSE_TASKS,
            build=f"{module}:build_dice",
            config="medvid_core.losses.config:DiceConfig",
            card=Card(
                summary="One minus the soft Dice coefficient of each clip and class.",
                paper="Milletari et al., 3DV 2016",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="dice-ce",
            tasks=_DENSE_TASKS,
            build=f"{module}:build_dice_ce",
            config="medvid_core.losses.config:DiceCEConfig",
            card=Card(summary="Sum of soft Dice and cross-entropy.", code_license=_LICENSE),
        ),
    ]


@hookimpl
def medvid_metrics() -> list[MetricSpec]:
    """Overlap and error per case."""
    module = "medvid_core.metrics.segmentation"
    overlap = {
        "dice": ("Dice", "Dice similarity coefficient."),
        "jaccard": ("Jaccard", "Jaccard index, intersection over union."),
        "precision": ("Precision", "Share of the predicted pixels that are right."),
        "recall": ("Recall", "Share of the annotated pixels that are found."),
        "specificity": ("Specificity", "Share of the background that is left alone."),
        "f-measure": ("FMeasure", "Weighted mean of precision and recall, beta squared 0.3."),
    }
    specs = [
        MetricSpec(
            name=name, tasks=_DENSE_TASKS, build=f"{module}:{cls}", card=Card(summary=summary, code_license=_LICENSE)
        )
        for name, (cls, summary) in overlap.items()
    ]
    mae = MetricSpec(
        name="mae",
        tasks=_DENSE_TASKS,
        build=f"{module}:MeanAbsoluteError",
        higher_is_better=False,
        card=Card(summary="Mean absolute difference of probability and annotation.", code_license=_LICENSE),
    )
    return [*specs, mae]
