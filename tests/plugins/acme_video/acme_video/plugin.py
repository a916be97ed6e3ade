"""What this distribution offers."""

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, DatasetSpec, LossSpec, MetricSpec, ModelSpec, PreprocessorSpec

MEDVID_PLUGIN_API = (1, 0)


@hookimpl
def medvid_models():
    return [
        ModelSpec(
            name="acme-net",
            tasks=("segmentation",),
            build="acme_video.network:build",
            config="acme_video.config:AcmeNetConfig",
            presets={
                "tiny": {"model.width": 8, "clip.frames": 3, "clip.size": (16, 16), "train.batch_size": 2},
                "small": {"model.width": 8, "clip.frames": 3, "clip.size": (32, 32), "optimizer.lr": 1e-2},
                "full": {},
            },
            clip=ClipSpec(frames=4, size=(64, 64), streams=("video", "difference")),
            recipe={"loss": "acme-focal", "metrics": ("dice",), "train.epochs": 5},
            card=Card(summary="Three convolutions over video and frame differences.", code_license="MIT"),
        )
    ]


@hookimpl
def medvid_datasets():
    return [
        DatasetSpec(
            name="acme-blobs",
            tasks=("segmentation",),
            index="acme_video.datasets:index",
            config="acme_video.config:AcmeBlobsConfig",
            card=Card(summary="Bright squares that drift.", code_license="MIT"),
        )
    ]


@hookimpl
def medvid_losses():
    return [
        LossSpec(
            name="acme-focal",
            tasks=("segmentation",),
            build="acme_video.losses:build",
            config="acme_video.config:AcmeFocalConfig",
            card=Card(summary="Focal loss.", code_license="MIT"),
        )
    ]


@hookimpl
def medvid_metrics():
    return [
        MetricSpec(
            name="acme-volume",
            tasks=("segmentation",),
            build="acme_video.metrics:Volume",
            card=Card(summary="Similarity of areas.", code_license="MIT"),
        ),
        MetricSpec(
            name="acme-hits",
            tasks=("classification",),
            build="acme_video.metrics:Hits",
            card=Card(summary="Share of the cases that are right.", code_license="MIT"),
        ),
    ]


@hookimpl
def medvid_preprocessors():
    return [
        PreprocessorSpec(
            name="acme-difference",
            requires=("video",),
            provides=("difference",),
            run="acme_video.preprocess:difference",
            config="acme_video.config:AcmeDifferenceConfig",
            cached=True,
            card=Card(summary="What changed since the frame before.", code_license="MIT"),
        )
    ]
