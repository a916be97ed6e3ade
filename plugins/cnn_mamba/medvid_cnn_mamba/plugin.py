"""What this distribution offers. Imports no torch."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, ModelSpec, Settings

MEDVID_PLUGIN_API = (1, 0)

_CLIP_TASKS = ("classification", "multilabel", "regression", "ordinal")
_TASKS = (*_CLIP_TASKS, "frame_classification", "anomaly")

_CLIP = ClipSpec(frames=32, size=(112, 112))

_RECIPE: Settings = {
    "dataset": "motion-phantom",
    "loss": "by-task",
    "metrics": "auto",
    "optimizer.name": "adamw",
    "optimizer.lr": 3e-4,
    "optimizer.weight_decay": 0.05,
    "optimizer.decay": "weights",
    "optimizer.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": 0.05,
    "schedule.final_lr": 1e-6,
    "train.epochs": 45,
    "train.batch_size": 16,
    "train.ema": 0.999,
}

_IMPORTERS = {"timm": "medvid_cnn_mamba.importer:import_timm"}

_TINY: Settings = {
    "model.encoder": "test_resnet",
    "model.width": 16,
    "clip.frames": 4,
    "clip.size": (32, 32),
    "optimizer.lr": 1e-2,
    "schedule.warmup": 0.0,
    "train.batch_size": 2,
    "train.ema": 0.0,
}

_SMALL: Settings = {
    "model.encoder": "test_resnet",
    "model.width": 96,
    "clip.frames": 16,
    "clip.size": (64, 64),
    "dataset.patients": 160,
    "optimizer.lr": 1e-3,
    "schedule.warmup": 0.0,
    "train.epochs": 12,
    "train.batch_size": 8,
    "train.ema": 0.0,
    "train.evaluate_every": 3,
}

_TINY_SPIKING: Settings = {"widths": (8, 16), "width": 16}
_SMALL_SPIKING: Settings = {"widths": (16, 32, 64), "width": 96}

_ECHONET: Settings = {
    "optimizer.name": "sgd",
    "optimizer.lr": 1e-4,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay": "all",
    "optimizer.clip_norm": 0.0,
    "schedule.name": "step",
    "schedule.every": 15,
    "schedule.gamma": 0.1,
    "schedule.warmup": 0.0,
    "train.epochs": 45,
    "train.batch_size": 20,
    "train.ema": 0.0,
}
"""How EchoNet-Dynamic was trained (Ouyang et al., Nature 2020, and their code), from weights trained on Kinetics."""

_OWN_DESIGN = (
    "a design of our own: the project it follows (CNN-Mamba for action, anomaly and disease progression) published a "
    "README and a block diagram, no model, no training code, no weights and no result"
)


def _presets(**more: object) -> dict[str, Settings]:
    """The common presets, with settings of one model for ``tiny`` and ``small``."""
    own = {f"model.{key}": value for key, value in more.items()}
    return {"tiny": {**_TINY, **own}, "small": {**_SMALL, **own}, "full": {}}


def _without_encoder(tiny: Settings, small: Settings) -> dict[str, Settings]:
    """The common presets for a model without a timm encoder."""
    found = {}
    for name, common, own in (("tiny", _TINY, tiny), ("small", _SMALL, small)):
        found[name] = {key: value for key, value in common.items() if not key.startswith("model.")}
        found[name] |= {f"model.{key}": value for key, value in own.items()}
    return {**found, "full": {}}


@hookimpl
def medvid_models() -> list[ModelSpec]:
    """CNN-Mamba, and what it is compared with."""
    network, config = "medvid_cnn_mamba.network", "medvid_cnn_mamba.config"
    return [
        ModelSpec(
            name="cnn-mamba",
            tasks=_TASKS,
            build=f"{network}:build_cnn_mamba",
            config=f"{config}:CNNMambaConfig",
            presets=_presets(layers=2),
            streaming=True,
            keep_fp32=("*.A_log", "*.A_b_log", "*.D", "*.D_b"),
            shard_units=("MambaLayer",),
            clip=_CLIP,
            recipe=_RECIPE,
            importers=_IMPORTERS,
            card=Card(
                summary=(
                    "An image network on each frame, optionally one on what changes, and Mamba layers over the "
                    "sequence; classes and grades of clips, actions of frames, anomaly scores, numbers."
                ),
                paper="Gu and Dao, Mamba, COLM 2024 (the layers); the whole is " + _OWN_DESIGN,
                upstream="https://github.com/shadynagy111-eng/Mamba-Accelerated-Medical-Video-Analysis",
                code_license="Apache-2.0",
                weights_license="none included; those of timm have terms of their own",
                reproduced="nothing: there is nothing published to reproduce",
            ),
        ),
        ModelSpec(
            name="cnn",
            tasks=_TASKS,
            build=f"{network}:build_cnn",
            config=f"{config}:CNNConfig",
            presets=_presets(),
            streaming=True,
            clip=_CLIP,
            recipe=_RECIPE,
            importers=_IMPORTERS,
            card=Card(
                summary="An image network on each frame and the mean over frames: the baseline without time.",
                code_license="Apache-2.0",
            ),
        ),
        ModelSpec(
            name="cnn-gru",
            tasks=_TASKS,
            build=f"{network}:build_cnn_gru",
            config=f"{config}:CNNGRUConfig",
            presets=_presets(layers=1),
            streaming=True,
            clip=_CLIP,
            recipe=_RECIPE,
            importers=_IMPORTERS,
            card=Card(
                summary="An image network on each frame and gated recurrent units over the sequence.",
                paper="Cho et al., EMNLP 2014",
                code_license="Apache-2.0",
            ),
        ),
        ModelSpec(
            name="cnn-transformer",
            tasks=_TASKS,
            build=f"{network}:build_cnn_transformer",
            config=f"{config}:CNNTransformerConfig",
            presets=_presets(layers=2, heads=4),
            clip=_CLIP,
            recipe=_RECIPE,
            importers=_IMPORTERS,
            card=Card(
                summary="An image network on each frame and a Transformer encoder over the sequence.",
                paper="Vaswani et al., NeurIPS 2017",
                code_license="Apache-2.0",
            ),
        ),
        ModelSpec(
            name="r2plus1d",
            tasks=_CLIP_TASKS,
            build=f"{network}:build_r2plus1d",
            config=f"{config}:R2Plus1DConfig",
            presets={
                **_without_encoder({"width": 4, "blocks": (1, 1, 1, 1)}, {"width": 16, "blocks": (1, 1, 1, 1)}),
                "echonet": _ECHONET,
            },
            clip=_CLIP,
            recipe=_RECIPE,
            importers={
                "kinetics": "medvid_cnn_mamba.importer:import_kinetics",
                "echonet": "medvid_cnn_mamba.importer:import_echonet",
            },
            card=Card(
                summary="R(2+1)D-18, space and time convolved in turn: the network of EchoNet-Dynamic.",
                paper="Tran et al., CVPR 2018; Ouyang et al., Nature 2020",
                upstream="https://github.com/echonet/dynamic",
                code_license="Apache-2.0",
            ),
        ),
        ModelSpec(
            name="snn",
            tasks=_TASKS,
            build=f"{network}:build_snn",
            config=f"{config}:SNNConfig",
            presets=_without_encoder(_TINY_SPIKING, _SMALL_SPIKING),
            clip=_CLIP,
            recipe=_RECIPE,
            streaming=True,
            card=Card(
                summary="Spiking network: leaky integrate-and-fire neurons, the time of the video is theirs.",
                paper="Fang et al., ICCV 2021 and Science Advances 2023 (SpikingJelly)",
                code_license="Apache-2.0",
            ),
        ),
        ModelSpec(
            name="cnn-snn",
            tasks=_TASKS,
            build=f"{network}:build_cnn_snn",
            config=f"{config}:CNNSNNConfig",
            presets=_without_encoder(_TINY_SPIKING, _SMALL_SPIKING),
            clip=_CLIP,
            recipe=_RECIPE,
            streaming=True,
            card=Card(
                summary="Hybrid: an analog convolutional stem on each frame and a spiking body.",
                paper="Fang et al., Science Advances 2023 (SpikingJelly)",
                code_license="Apache-2.0",
            ),
        ),
    ]
