"""What this distribution offers. Imports no torch."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, LossSpec, ModelSpec, PreprocessorSpec, Settings

MEDVID_PLUGIN_API = (1, 0)

_PAPER = "Chen et al., Two-stream 3D CNN with optical flow for adult spinal deformity, from videos of gait, 2023"
_UPSTREAM = "https://github.com/ChenKaiXuSan/Two_Stream_PyTorch"
_FAMILY = "https://github.com/ChenKaiXuSan/Skeleton_ASD_PyTorch"

# normalised as PyTorchVideo's Kinetics weights were trained
_CLIP = ClipSpec(frames=17, size=(224, 224), mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))

_RECIPE: Settings = {
    "dataset": "gait-phantom",
    "preprocess": "gait",
    "loss": "two-stream",
    "metrics": ("accuracy", "f1", "auroc", "balanced-accuracy", "precision", "recall"),
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "constant",
    "augment.horizontal_flip": 0.5,
    "train.epochs": 50,
    "train.batch_size": 8,
}

_EMBEDDED: Settings = {
    "preprocess.person": "background",
    "preprocess.mask": "background",
    "preprocess.flow": "dis",
    "preprocess.size": 96,
}
"""The phantom's camera stands still, and nothing has to be downloaded."""

_TINY: Settings = {
    "clip.frames": 4,
    "clip.size": (32, 32),
    "optimizer.lr": 1e-2,
    "train.batch_size": 2,
}

_SMALL: Settings = {
    "clip.frames": 16,
    "clip.size": (64, 64),
    "optimizer.lr": 1e-3,
    "train.epochs": 20,
    "train.batch_size": 8,
    "train.evaluate_every": 4,
}

_TINY_TRUNK: Settings = {"model.width": 8, "model.blocks": (1, 1, 1, 1), "model.dropout": 0.0}
_SMALL_TRUNK: Settings = {"model.width": 8, "model.blocks": (1, 1, 1, 1)}

_SLOW_PRESETS = {"tiny": {**_TINY, **_TINY_TRUNK}, "small": {**_SMALL, **_SMALL_TRUNK}, "full": {}}

_ORIGINAL: Settings = {
    "model.compat": True,
    "clip.mean": (0.0, 0.0, 0.0),
    "clip.std": (1.0, 1.0, 1.0),
    "train.batch_size": 3,
}
"""The original's numbers: its arithmetic, and pictures in [0, 1] without normalisation."""

_TRUNK_WEIGHTS = {
    "slow": "medvid_two_stream.importer:import_slow",
    "torchvision": "medvid_two_stream.importer:import_torchvision",
}

_WEIGHTS = (
    "none included; PyTorchVideo's Kinetics weights are Apache-2.0 and torchvision's BSD-3-Clause, both trained on "
    "data with terms of their own"
)


@hookimpl
def medvid_models() -> list[ModelSpec]:
    """The two-stream network, and what it is compared with."""
    network, config = "medvid_two_stream.network", "medvid_two_stream.config"
    return [
        ModelSpec(
            name="two-stream",
            tasks=("classification",),
            build=f"{network}:build_two_stream",
            config=f"{config}:TwoStreamConfig",
            presets={**_SLOW_PRESETS, "original": _ORIGINAL},
            clip=_CLIP,
            streams=f"{config}:two_stream_needs",
            recipe=_RECIPE,
            embedded=_EMBEDDED,
            importers={**_TRUNK_WEIGHTS, "upstream": "medvid_two_stream.importer:import_upstream"},
            upstream_config=f"{config}:from_upstream",
            trainable={"heads": ("streams.*.head.*", "streams.*.blocks.5.*", "joint", "weights")},
            shard_units=("Block",),
            card=Card(
                summary=(
                    "3D networks of what a walking person looks like (pictures, the person alone) and how it moves "
                    "(optical flow), trained apart or together; also single streams, early fusion, networks of frames."
                ),
                paper=f"{_PAPER}; the idea: Simonyan and Zisserman, NeurIPS 2014; the network: Feichtenhofer et al., "
                "SlowFast, ICCV 2019",
                upstream=_UPSTREAM,
                code_license="Apache-2.0",
                weights_license=_WEIGHTS,
                reproduced=(
                    "logits, losses and gradients of the original's code, all six of its combinations, on random "
                    "weights (preset=original). The paper's scores are not: its patients' videos are private"
                ),
            ),
        ),
        ModelSpec(
            name="cnn-lstm",
            tasks=("classification",),
            build=f"{network}:build_cnn_lstm",
            config=f"{config}:CNNLSTMConfig",
            presets={
                "tiny": {
                    **_TINY,
                    "model.trunk": "resnet18",
                    "model.features": 8,
                    "model.hidden": 8,
                    "model.layers": 1,
                    "optimizer.lr": 1e-3,
                },
                "small": {**_SMALL, "model.trunk": "resnet18", "model.features": 64, "model.hidden": 64},
                "full": {},
            },
            clip=_CLIP,
            streams=f"{config}:single_needs",
            recipe=_RECIPE,
            embedded=_EMBEDDED,
            importers={"torchvision": _TRUNK_WEIGHTS["torchvision"]},
            card=Card(
                summary="An image network on each frame and an LSTM, which answers for every frame: a baseline.",
                paper="Donahue et al., CVPR 2015",
                upstream=_FAMILY,
                code_license="Apache-2.0",
                weights_license=_WEIGHTS,
                reproduced="logits of the family's code on random weights",
            ),
        ),
        ModelSpec(
            name="attention-branch",
            tasks=("classification",),
            build=f"{network}:build_attention_branch",
            config=f"{config}:AttentionBranchConfig",
            presets=_SLOW_PRESETS,
            clip=_CLIP,
            streams=f"{config}:single_needs",
            recipe=_RECIPE,
            embedded=_EMBEDDED,
            importers=_TRUNK_WEIGHTS,
            shard_units=("Block",),
            card=Card(
                summary="A 3D network with a branch that says where to look and is trained to classify by itself.",
                paper="Fukui et al., Attention Branch Network, CVPR 2019",
                upstream=_FAMILY,
                code_license="Apache-2.0",
                weights_license=_WEIGHTS,
                reproduced="number and shapes of the parameters of the family's code",
            ),
        ),
        ModelSpec(
            name="cross-attention",
            tasks=("classification",),
            build=f"{network}:build_cross_attention",
            config=f"{config}:CrossAttentionConfig",
            presets=_SLOW_PRESETS,
            clip=_CLIP,
            streams=f"{config}:cross_attention_needs",
            recipe=_RECIPE,
            embedded=_EMBEDDED,
            importers=_TRUNK_WEIGHTS,
            shard_units=("Block",),
            card=Card(
                summary="A 3D network whose features ask, by attention, where the person is or how it moves.",
                paper="Vaswani et al., NeurIPS 2017 (attention)",
                upstream="https://github.com/ChenKaiXuSan/ClinicalGait-CrossAttention",
                code_license="Apache-2.0",
                weights_license=_WEIGHTS,
                reproduced="output of the family's fusion module, whose map is another one there (a clinician's)",
            ),
        ),
    ]


@hookimpl
def medvid_losses() -> list[LossSpec]:
    """What the streams are trained on."""
    return [
        LossSpec(
            name="two-stream",
            tasks=("classification",),
            build="medvid_two_stream.losses:build_two_stream_loss",
            config="medvid_two_stream.config:TwoStreamLossConfig",
            card=Card(
                summary="Cross-entropy of every stream by itself, or of their fusion, as the network is made for.",
                paper=_PAPER,
                code_license="Apache-2.0",
            ),
        )
    ]


@hookimpl
def medvid_preprocessors() -> list[PreprocessorSpec]:
    """From a video of somebody who walks to what the networks look at."""
    return [
        PreprocessorSpec(
            name="gait",
            requires=("video",),
            provides=("video", "person_mask", "flow"),
            stages="medvid_two_stream.preprocess.stages:stages",
            config="medvid_two_stream.preprocess.config:GaitConfig",
            trial={"person": "background", "mask": "background", "flow": "dis", "size": 64, "stride": 1},
            card=Card(
                summary="The walking person in a steady square of every n-th frame, with mask and optical flow.",
                paper="Ren et al., Faster R-CNN, NeurIPS 2015; He et al., Mask R-CNN, ICCV 2017; Teed and Deng, RAFT, "
                "ECCV 2020; Kroeger et al., DIS, ECCV 2016",
                upstream="https://github.com/ChenKaiXuSan/Walk_Video_PyTorch",
                code_license="Apache-2.0",
                weights_license="none included; torchvision's are BSD-3-Clause, their training data have own terms",
            ),
        )
    ]
