"""What core itself offers, through the same hooks as every plugin."""

from __future__ import annotations

from medvid_core.hookspecs import hookimpl
from medvid_core.specs import TASKS, Card, ClipSpec, DatasetSpec, LossSpec, MetricSpec, ModelSpec

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
            name="motion-phantom",
            tasks=("classification", "regression", "anomaly", "frame_classification"),
            index=f"{module}.motion_phantom:index",
            config="medvid_core.data.phantoms.motion:MotionPhantomConfig",
            card=Card(
                summary="Beating hearts with questions only time can answer: order of frames, ejection fraction, "
                "arrhythmia, a stalled beat, phase, progression over visits; nothing to download",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="gait-phantom",
            tasks=("classification",),
            index=f"{module}.gait_phantom:index",
            config="medvid_core.data.phantoms.gait:GaitPhantomConfig",
            card=Card(
                summary="People who walk across a room, seen from the side: with a spinal deformity they lean forward "
                "and walk in surges, either of which can be switched off; nothing to download",
                code_license="Apache-2.0",
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
            name="buv",
            tasks=("segmentation", "classification"),
            can_read=f"{module}.buv:can_read",
            index=f"{module}.buv:index",
            config=f"{module}.buv:BUVConfig",
            card=Card(
                summary="Breast ultrasound: rawframes/<diagnosis>/<case>/*.png, masks/<diagnosis>/<case>/*.png.",
                paper="Li et al., Rethinking breast lesion segmentation in ultrasound, MICCAI 2022 (63 videos)",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="polyps",
            tasks=_DENSE_TASKS,
            can_read=f"{module}.polyps:can_read",
            index=f"{module}.polyps:index",
            config=f"{module}.polyps:PolypsConfig",
            card=Card(
                summary="Polyp videos: <video>/{Frame,GT}/*, or {Frame,GT}/<video>/* as CVC-612-TV and SUN-SEG.",
                paper="Ji et al., PNS-Net, MICCAI 2021 (CVC-300-TV, CVC-612-V, CVC-612-T); Ji et al., Video polyp "
                "segmentation: a deep learning perspective, Machine Intelligence Research 2022 (SUN-SEG)",
                upstream="https://github.com/GewelsJI/VPS",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="ovarian",
            tasks=_DENSE_TASKS,
            can_read=f"{module}.ovarian:can_read",
            index=f"{module}.ovarian:index",
            config=f"{module}.ovarian:OvarianConfig",
            defaults={"clip.sampling": "all"},
            card=Card(
                summary="One mask file a class: <case>/<number>_frame.png, <number>_<class>.png, fan.png.",
                upstream="https://github.com/Nicolo2277/Vivim",
                code_license="Apache-2.0",
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
            unlabelled=f"{module}.unlabelled:index",
            config=f"{module}.videos:VideosConfig",
            card=Card(
                summary="Video files, each with a mask video name_mask.* or a folder name_mask/ beside it.",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="manifest",
            tasks=TASKS,
            can_read=f"{module}.manifest:can_read",
            hint=f"{module}.manifest:hint",
            index=f"{module}.manifest:index",
            unlabelled=f"{module}.manifest:unlabelled",
            config=f"{module}.manifest:ManifestConfig",
            card=Card(
                summary="A CSV table: file, mask, label, frame_labels, anomaly or numbers, group_id, split and more.",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="class-folders",
            tasks=("classification", "ordinal"),
            can_read=f"{module}.class_folders:can_read",
            index=f"{module}.class_folders:index",
            config=f"{module}.class_folders:ClassFoldersConfig",
            card=Card(
                summary="A folder a class: <class>/<clip> or <class>/<patient>/<clip>, files or folders of frames.",
                paper="Pogorelov et al., Nerthus, MMSys 2017 (bowel preparation, grades 0 to 3)",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="echonet-dynamic",
            tasks=("segmentation", "regression"),
            can_read=f"{module}.echonet:can_read",
            index=f"{module}.echonet:index",
            config=f"{module}.echonet:EchoNetConfig",
            defaults={
                "clip.frames": 32,
                "clip.stride": 2,
                "clip.size": (112, 112),
                "clip.padding": "zero",
                # over 128 random clips, in the authors' published runs; grey in all three channels
                "clip.mean": (0.1294,),
                "clip.std": (0.1966,),
                "augment.pad": 12,
            },
            card=Card(
                summary="EchoNet-Dynamic: FileList.csv, VolumeTracings.csv, Videos/*.avi; EF and traced ventricles.",
                paper="Ouyang et al., Video-based AI for beat-to-beat assessment of cardiac function, Nature 2020",
                upstream="https://echonet.github.io/dynamic",
                code_license="Apache-2.0",
                data_license="Stanford research use agreement: non-commercial, no redistribution",
            ),
        ),
        DatasetSpec(
            name="cardiac-udc",
            tasks=("segmentation", "classification"),
            can_read=f"{module}.cardiac_udc:can_read",
            index=f"{module}.cardiac_udc:index",
            config=f"{module}.cardiac_udc:CardiacUDCConfig",
            card=Card(
                summary="CardiacUDC: Site_*/patient-<id>-<view>_image.nii.gz with _label.nii.gz, label_all_frame/.",
                paper="Yang et al., GraphEcho, ICCV 2023",
                upstream="https://github.com/xmed-lab/GraphEcho",
                code_license="Apache-2.0",
            ),
        ),
        DatasetSpec(
            name="camus",
            tasks=("segmentation", "regression"),
            can_read=f"{module}.camus:can_read",
            index=f"{module}.camus:index",
            config=f"{module}.camus:CAMUSConfig",
            card=Card(
                summary="CAMUS: patient*/patient*_{2CH,4CH}_half_sequence.nii.gz with _gt masks and Info_*.cfg.",
                paper="Leclerc et al., Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D "
                "Echocardiography, IEEE TMI 2019",
                upstream="https://www.creatis.insa-lyon.fr/Challenge/camus",
                code_license="Apache-2.0",
                data_license="CC BY-NC-SA 4.0",
            ),
        ),
    ]


@hookimpl
def medvid_losses() -> list[LossSpec]:
    """What learns masks, and what learns everything else."""
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
        LossSpec(
            name="focal",
            tasks=_DENSE_TASKS,
            build="medvid_core.losses.imbalanced:build_focal",
            config="medvid_core.losses.config:FocalConfig",
            card=Card(
                summary="Class-balanced focal loss: pixels that are nearly right hardly count.",
                paper="Lin et al., ICCV 2017; in the form of Vivim's ovarian extension",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="tversky",
            tasks=_DENSE_TASKS,
            build="medvid_core.losses.imbalanced:build_tversky",
            config="medvid_core.losses.config:TverskyConfig",
            card=Card(
                summary="One minus the Tversky index of each frame and class: missing costs more than excess.",
                paper="Salehi et al., MLMI 2017",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="focal-tversky",
            tasks=_DENSE_TASKS,
            build="medvid_core.losses.imbalanced:build_focal_tversky",
            config="medvid_core.losses.config:FocalTverskyConfig",
            card=Card(
                summary="0.4 focal + 0.6 Tversky: the recall-focused loss of Vivim's ovarian extension.",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="recall",
            tasks=_DENSE_TASKS,
            build="medvid_core.losses.imbalanced:build_recall",
            config="medvid_core.losses.config:RecallConfig",
            card=Card(
                summary="Cross-entropy, each class weighted by the share of it that is missed.",
                paper="Tian et al., Striking the Right Balance: Recall Loss for Semantic Segmentation, ICRA 2022",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="boundary-ce",
            tasks=_DENSE_TASKS,
            build="medvid_core.losses.imbalanced:build_boundary_ce",
            config="medvid_core.losses.config:BoundaryCEConfig",
            card=Card(
                summary="Cross-entropy with more on outlines: the boundary-aware loss of Vivim's ovarian extension.",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="by-task",
            tasks=tuple(task for task in TASKS if task != "segmentation"),
            build="medvid_core.losses.tasks:build_by_task",
            config="medvid_core.losses.config:ByTaskConfig",
            card=Card(
                summary="For every output the usual loss of its task; anomaly also from labels of whole videos.",
                paper="Farha & Gall, CVPR 2019 (actions); Cao et al., 2020 (grades); Sultani et al., 2018 (anomaly)",
                code_license=_LICENSE,
            ),
        ),
        LossSpec(
            name="normal-only",
            tasks=("anomaly",),
            build="medvid_core.losses.tasks:build_normal_only",
            config="medvid_core.losses.config:NormalOnlyConfig",
            card=Card(
                summary="Mean anomaly score of normal videos, for models whose score is an error.",
                code_license=_LICENSE,
            ),
        ),
    ]


@hookimpl
def medvid_metrics() -> list[MetricSpec]:
    """Overlap and outlines of masks, what follows from those of the heart, and what is usual for every other task."""
    module = "medvid_core.metrics.segmentation"
    overlap = {
        "dice": ("Dice", "Dice similarity coefficient."),
        "jaccard": ("Jaccard", "Jaccard index, intersection over union."),
        "specificity": ("Specificity", "Share of the background that is left alone."),
        "f-measure": ("FMeasure", "Weighted mean of precision and recall, beta squared 0.3."),
    }
    specs = [
        MetricSpec(
            name=name, tasks=_DENSE_TASKS, build=f"{module}:{cls}", card=Card(summary=summary, code_license=_LICENSE)
        )
        for name, (cls, summary) in overlap.items()
    ]
    return [*specs, *(_metric(*row) for row in (*_OF_BOTH, *_MASK_METRICS, *_CASE_METRICS))]


_RANKED = ("classification", "multilabel")
_DECIDED = (*_RANKED, "ordinal")
_NUMBERS, _GRADES, _FRAMES, _ANOMALY = ("regression",), ("ordinal",), ("frame_classification",), ("anomaly",)

_OF_BOTH = (  # of pixels, or of cases
    (
        "precision",
        (*_DENSE_TASKS, *_DECIDED),
        "classification:build_precision",
        "Share of the pixels, or cases, called a class that are.",
    ),
    (
        "recall",
        (*_DENSE_TASKS, *_DECIDED),
        "classification:build_recall",
        "Share of the pixels, or cases, of a class that are found.",
    ),
    (
        "mae",
        (*_DENSE_TASKS, *_NUMBERS),
        "regression:build_mae",
        "Mean absolute difference of probability, or number, and annotation.",
        False,
    ),
)

_MASK_METRICS = (
    ("dice-present", _DENSE_TASKS, "segmentation:build_dice_present", "Dice of the frames that hold the class."),
    ("jaccard-present", _DENSE_TASKS, "segmentation:build_jaccard_present", "Jaccard index of these frames."),
    ("precision-present", _DENSE_TASKS, "segmentation:build_precision_present", "Precision of these frames."),
    ("recall-present", _DENSE_TASKS, "segmentation:build_recall_present", "Recall of these frames."),
    ("hausdorff", _DENSE_TASKS, "surface:Hausdorff", "Hausdorff distance of outlines, the maximum.", False, "mm"),
    ("hd95", _DENSE_TASKS, "surface:Hausdorff95", "95th percentile Hausdorff distance.", False, "mm"),
    ("asd", _DENSE_TASKS, "surface:AverageSurfaceDistance", "Mean distance, prediction to annotation.", False, "mm"),
    ("assd", _DENSE_TASKS, "surface:AverageSymmetricSurfaceDistance", "Mean distance, both directions.", False, "mm"),
    (
        "ejection-fraction",
        _DENSE_TASKS,
        "ejection_fraction:EjectionFraction",
        "EF from masks by summation of discs, one plane and two: error, bias, limits of agreement.",
        False,
        "percentage points",
    ),
    (
        "ejection-fraction-area-length",
        _DENSE_TASKS,
        "ejection_fraction:AreaLengthEjectionFraction",
        "EF from masks by area and length: error, bias, limits of agreement.",
        False,
        "percentage points",
    ),
    (
        "temporal-consistency",
        _DENSE_TASKS,
        "temporal:TemporalConsistency",
        "How far the predicted ventricle jumps from frame to frame; lower is smoother.",
        False,
    ),
    ("threshold-mean-dice", _DENSE_TASKS, "thresholds:MeanDice", "Dice, mean over 256 thresholds."),
    ("threshold-mean-jaccard", _DENSE_TASKS, "thresholds:MeanJaccard", "Jaccard index, mean over 256 thresholds."),
    ("threshold-mean-precision", _DENSE_TASKS, "thresholds:MeanPrecision", "Precision, mean over 256 thresholds."),
    ("threshold-mean-recall", _DENSE_TASKS, "thresholds:MeanRecall", "Recall, mean over 256 thresholds."),
    (
        "threshold-mean-specificity",
        _DENSE_TASKS,
        "thresholds:MeanSpecificity",
        "Specificity, mean over 256 thresholds.",
    ),
    ("threshold-max-dice", _DENSE_TASKS, "thresholds:MaxDice", "Dice at the best threshold (polyp protocol)."),
    ("threshold-max-jaccard", _DENSE_TASKS, "thresholds:MaxJaccard", "Jaccard index at the best threshold."),
    ("threshold-max-specificity", _DENSE_TASKS, "thresholds:MaxSpecificity", "Specificity at the best threshold."),
    ("s-measure", _DENSE_TASKS, "saliency:build_structure_measure", "Structure measure of the stretched map."),
    ("e-measure", _DENSE_TASKS, "saliency:build_mean_alignment", "Enhanced alignment, mean over 256 levels."),
    ("e-measure-max", _DENSE_TASKS, "saliency:BestAlignment", "Enhanced alignment at the best level."),
    ("e-measure-adaptive", _DENSE_TASKS, "saliency:build_adaptive_alignment", "Enhanced alignment at twice the mean."),
    ("weighted-f", _DENSE_TASKS, "saliency:build_weighted_f", "F-measure with errors weighed by where they lie."),
    ("stretched-mae", _DENSE_TASKS, "saliency:build_stretched_error", "Mean error of the stretched map.", False),
)

_CASE_METRICS = (
    ("accuracy", _DECIDED, "classification:Accuracy", "Share of the cases whose class is right."),
    ("balanced-accuracy", _DECIDED, "classification:BalancedAccuracy", "Mean over classes of the share found."),
    ("f1", _DECIDED, "classification:F1", "Macro F1: mean over classes."),
    ("auroc", _RANKED, "classification:AUROC", "Area under the ROC curve, each class against all others."),
    ("average-precision", _RANKED, "classification:AveragePrecision", "Average precision, beside the prevalence."),
    ("grade-mae", _GRADES, "classification:GradeMAE", "Mean absolute error in grades.", False, "grades"),
    ("kappa", _GRADES, "classification:Kappa", "Cohen's kappa with quadratic weights."),
    ("rmse", _NUMBERS, "regression:RootMeanSquaredError", "Root mean squared error.", False),
    ("r2", _NUMBERS, "regression:R2", "1 - SSE / SST, which is not the squared correlation."),
    ("squared-correlation", _NUMBERS, "regression:SquaredCorrelation", "Square of Pearson's correlation."),
    ("bland-altman", _NUMBERS, "regression:BlandAltman", "Limits of agreement: half their width, bias, both.", False),
    ("auroc-below", _NUMBERS, "regression:AUROCBelow", "AUROC for true values below 35, 40, 45 and 50."),
    ("auroc-worsened", _NUMBERS, "regression:AUROCWorsened", "AUROC for values that fell by 10 since the last visit."),
    ("c-index", _NUMBERS, "regression:CIndex", "Concordance of predicted and true change since the last visit."),
    ("mae-low", _NUMBERS, "regression:LowRangeError", "Mean absolute error where true values are low.", False),
    ("frame-accuracy", _FRAMES, "frames:FrameAccuracy", "Share of the frames whose class is right."),
    ("frame-f1", _FRAMES, "frames:FrameF1", "Macro F1 of all frames."),
    ("segmental-f1", _FRAMES, "frames:SegmentalF1", "F1 of segments that overlap by 50, 25 and 10 %."),
    ("edit-score", _FRAMES, "frames:EditScore", "Whether the segments come in the right order."),
    ("anomaly-auroc", _ANOMALY, "anomaly:AnomalyAUROC", "frame-auroc where it is defined, else video-auroc."),
    ("frame-auroc", _ANOMALY, "anomaly:FrameAUROC", "Area under the ROC curve of frames."),
    ("frame-ap", _ANOMALY, "anomaly:FrameAP", "Average precision of frames, beside the prevalence."),
    ("video-auroc", _ANOMALY, "anomaly:VideoAUROC", "Area under the ROC curve of videos."),
    ("video-ap", _ANOMALY, "anomaly:VideoAP", "Average precision of videos, beside the prevalence."),
    ("sensitivity-at-95-specificity", _ANOMALY, "anomaly:Sensitivity", "Share of abnormal frames that raise an alarm."),
    ("detection-delay", _ANOMALY, "anomaly:DetectionDelay", "From an onset to the first alarm.", False, "frames"),
)


def _metric(
    name: str, tasks: tuple[str, ...], build: str, summary: str, higher_is_better: bool = True, unit: str = ""
) -> MetricSpec:
    return MetricSpec(
        name=name,
        tasks=tasks,
        build=f"medvid_core.metrics.{build}",
        higher_is_better=higher_is_better,
        unit=unit,
        card=Card(summary=summary, code_license=_LICENSE),
    )
