"""What this distribution offers. Imports no torch."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ClipSpec, ModelSpec, Settings

MEDVID_PLUGIN_API = (1, 0)

_SAM = "Kirillov et al., Segment Anything, ICCV 2023"

_METRICS = ("dice", "jaccard", "hausdorff", "hd95", "asd", "assd")

_RECIPE: Settings = {
    # cross-entropy and half a soft Dice; pixels and frames nobody drew are left out of both
    "loss": "dice-ce",
    "loss.dice_weight": 0.5,
    "metrics": _METRICS,
    "model.prompt_rate": 0.25,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.05,
    "optimizer.decay": "weights",
    "optimizer.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.final_lr": 1e-6,
    "schedule.warmup": 0.05,
    "augment.rotation_deg": 15.0,
    "augment.scale": 0.15,
    "augment.translate": 0.05,
    "augment.brightness": 0.3,
    "augment.contrast": 0.3,
    "train.epochs": 100,
    "train.batch_size": 4,
}

_TINY: Settings = {
    "model.variant": "tiny",
    "clip.frames": 3,
    "clip.size": (32, 32),
    "optimizer.lr": 1e-2,
    "schedule.warmup": 0.0,
    "train.batch_size": 2,
}

_SMALL: Settings = {
    "model.variant": "small",
    "clip.frames": 4,
    "clip.size": (96, 96),
    "clip.per_case": 4,
    "optimizer.lr": 1e-3,
    "train.epochs": 16,
    "train.batch_size": 8,
}

_FULL: Settings = {"model.checkpointing": True}


_ADDED = (
    "image_encoder.stem",
    "image_encoder.out_conv",
    "image_encoder.branch",
    "image_encoder.factors",
    "image_encoder.blocks.*.temporal*",
    "image_encoder.blocks.*.cross*",
    "image_encoder.blocks.*.adapter*",
    "image_encoder.blocks.*.cores*",
    "prompt_encoder",
    "mask_decoder",
)

TRAINABLE = {
    "adapters": _ADDED,
    "figure": (*_ADDED, "image_encoder.patch_embed", "image_encoder.pos_embed", "image_encoder.neck"),
}
"""Named choices of what is trained, as patterns of parameter names; they hold for every wiring.

``adapters``: everything that SAM's image encoder has not, the prompt encoder and the mask decoder. ``figure``: what the
first version's figure leaves unfrozen, that is all but norm1, attn, norm2 and mlp of the encoder's blocks.
"""

PROMPT_ONLY = (
    "prompt_encoder.point_embeddings.*",
    "prompt_encoder.not_a_point_embed.*",
    "prompt_encoder.mask_downscaling.*",
)
"""Parameters that receive no gradient from a clip without prompts."""


@hookimpl
def medvid_models() -> list[ModelSpec]:
    """MediViSTA-SAM, and SAM 2's video model beside it."""
    importer = "medvid_medivista_sam.importer"
    return [
        ModelSpec(
            name="medivista-sam",
            tasks=("segmentation",),
            build="medvid_medivista_sam.network:build",
            config="medvid_medivista_sam.config:MediViSTAConfig",
            # the network takes each clip's own minimum and maximum for black and white
            clip=ClipSpec(frames=10, size=(256, 256), multiple=16, channels=1, mean=(0.0,), std=(1.0,)),
            presets={"tiny": _TINY, "small": _SMALL, "full": _FULL},
            recipe=_RECIPE,
            importers={
                "meta": f"{importer}:import_meta",
                "timm": f"{importer}:import_timm",
                "hf": f"{importer}:import_hf",
                "upstream": f"{importer}:import_v1",
                "upstream-v2": f"{importer}:import_v2",
            },
            trainable=TRAINABLE,
            unused_parameters=PROMPT_ONLY,
            shard_units=("SpatioTemporalBlock", "FusionBlock"),
            prompts=True,
            card=Card(
                summary=(
                    "The Segment Anything Model for ultrasound video: encoder blocks that look across frames, a "
                    "convolutional stem, a mask decoder of classes; prompts if you like, none needed."
                ),
                paper=(
                    "Kim et al., MediViSTA-SAM, arXiv 2309.13539 (wiring=paper, released); MediViSTA, IEEE JBHI 2025, "
                    f"doi 10.1109/JBHI.2025.3540306 (wiring=fusion); {_SAM}"
                ),
                upstream="https://github.com/kimsekeun/MediViSTA-SAM, https://github.com/SekeunKim/MediViSTA",
                code_license="Apache-2.0",
                weights_license="none included, none published; Meta's SAM weights are Apache-2.0",
                reproduced=(
                    "outputs and gradients of the published code of both versions, on random weights; what neither "
                    "published (training code, the second version's fusion block) is a design of ours"
                ),
            ),
        ),
        ModelSpec(
            name="sam2-video",
            tasks=("segmentation",),
            build="medvid_medivista_sam.sam2:build_sam2_video",
            config="medvid_medivista_sam.sam2_config:SAM2Config",
            clip=ClipSpec(frames=16, size=(1024, 1024)),
            presets={
                "tiny": {
                    "model.weights": "random",
                    "clip.frames": 4,
                    "clip.size": (32, 32),
                    "optimizer.lr": 1e-3,
                    "train.batch_size": 2,
                },
                "small": {"clip.frames": 16, "clip.size": (256, 256), "train.batch_size": 1},
                "full": {"train.batch_size": 1},
            },
            recipe={
                "loss": "dice-ce",
                "metrics": _METRICS,
                "optimizer.lr": 1e-5,
                "train.epochs": 10,
                "model.prompt_from": "box",
                "evaluate.prompt": "box",
            },
            trainable={"decoder": ("net.mask_decoder", "net.memory_*")},
            unused_parameters=(
                "*.iou_prediction_head.*",
                "*.pred_obj_score_head.*",
                "net.no_memory_positional_encoding",
                # of masks that are given; the recipe points with boxes
                "net.mask_downsample.*",
                "net.prompt_encoder.mask_embed.*",
            ),
            prompts=True,
            card=Card(
                summary="SAM 2's video model as the transformers library has it: follows what a prompt points at.",
                paper="Ravi et al., SAM 2: Segment Anything in Images and Videos, ICLR 2025",
                upstream="https://github.com/facebookresearch/sam2",
                code_license="Apache-2.0",
                weights_license="none included; Meta's are Apache-2.0",
                reproduced="the outputs of transformers' own video sessions, to the bit",
            ),
        ),
    ]
