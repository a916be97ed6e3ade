"""SAM 2 and 2.1 for video (Ravi et al., ICLR 2025): segments and follows what is pointed out on any frame.

Networks, weights and memory are those of the transformers library (Apache-2.0), whose step for one frame is called as
it is. Ours is what medvid asks for around it: batches in and logits out, prompts, classes, both directions of time, and
memory that does not grow with the length of the clip. Meta's repository: facebookresearch/sam2.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from medvid_core.data.clip import UNLABELLED, Batch
from medvid_core.errors import CheckpointError, ConfigError, DataError
from medvid_core.specs import OutputSpec
from medvid_medivista_sam.network.prompting import Prompt, check_prompts, objects
from medvid_medivista_sam.sam2_config import RANDOM, SAM2Config

INSTALL = "pip install 'medvid-medivista-sam[sam2]'"
FILES = ("config.json", "model.safetensors")

ABSENT = -1024.0
"""The logit of what is not there; the library gives it to objects that it takes to be hidden."""

_CORNERS = (2, 3)
"""SAM's labels of the upper left and the lower right corner of a box; those of points are 1 and 0."""

_PARTS = ("points", "labels", "box", "mask")

Network = Any
"""The library's ``Sam2VideoModel``; it is imported only where it is used."""


class SAM2Video(nn.Module):
    """SAM 2 over clips: ``video`` [B,T,3,H,W] of any size → logits [B,T,K,H,W].

    **Prompts.** ``batch["prompts"]`` is a list over the clips of lists of dicts: ``class`` (the value of the object in
    masks: 1 to K-1, and 1 where K = 1), ``frame`` (index in the clip), and either ``mask`` (bool or float [H,W], inside
    from 0.5) or one or both of ``points`` ([N,2], x and y in pixels of the tensor) with ``labels`` ([N], 1 inside, 0
    outside) and ``box`` ([x0,y0,x1,y1]).

    Without ``prompts`` in the batch the annotation gives them (``mask`` [B,T,H,W], 255 = unlabelled): of each class, on
    the first annotated frame that shows it, what ``model.prompt_from`` says. That is the semi-supervised protocol of
    video object segmentation. The score of that very frame flatters the model: it was told the answer, with ``mask``
    all of it. A clip with neither is refused.

    **Objects.** Each class is one object, followed from its first prompted frame to the end of the clip, then from
    there back to its beginning. Objects do not see each other, in SAM 2 as here. Frames that only fill a clip up
    (``frame_real``) are left out.

    **Logits.** K = 1: those of the object. K > 1: channel k has those of object k, channel 0 is zero. So the class is
    the object with the highest logit if that is positive, else the background, and the softmax over the background and
    one object is the sigmoid of its logit. A class without a prompt, and a frame that is not real, has `ABSENT`.

    **Training.** Meta's recipe is not part of this. Gradients flow through masks, memory and image encoder, as far as
    the library's step for inference has them; not through its decisions, so the heads for IoU and object score do not
    learn. A frame prompted with its mask teaches nothing by itself: its logits are the mask. In training mode the
    network stays in evaluation mode (no dropout), the only one in which the library's step works.

    **Memory.** Frames are resized one at a time, from wherever the clip lies: it may be on the CPU while the network is
    on a GPU. Of past frames only those that SAM 2 can still look at are kept.
    """

    def __init__(self, config: SAM2Config, output: OutputSpec) -> None:
        super().__init__()
        self.output_name = output.name
        self.classes = len(output.classes)
        self.prompt_from = config.prompt_from
        self.net: Network = _random() if config.weights == RANDOM else _load(config.weights)
        self.net.eval()

    def train(self, mode: bool = True) -> SAM2Video:
        """Set the mode, but not that of the library's network."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Segment what is pointed out in each clip.

        Raises:
            DataError: a clip has no prompt, or one that cannot be used.
        """
        video = batch["video"]
        clips = []
        for number, clip in enumerate(video):
            frames = list(range(len(clip)))
            if "frame_real" in batch:
                frames = batch["frame_real"][number].nonzero()[:, 0].tolist()
            try:
                prompts = self._prompts(batch, number, frames)
            except DataError as error:
                name = batch["case_id"][number] if "case_id" in batch else f"{number} of the batch"
                raise DataError(f"Clip {name}: {error}") from error
            clips.append(self._logits(clip, self._follow(clip, frames, prompts)))
        # a clip with nothing to follow, or nothing but given masks, is constant: training shall survive it
        connected = torch.stack(clips) + 0 * self.net.no_object_pointer.sum()
        return {self.output_name: connected.to(video.device)}

    def _prompts(self, batch: Batch, number: int, frames: Sequence[int]) -> Sequence[Prompt]:
        """The prompts of one clip: given ones, or those of its annotation."""
        if "prompts" in batch and batch["prompts"][number]:
            return _usable(batch["prompts"][number], self.classes, frames, batch["video"].shape[-2:])
        if "prompts" not in batch and "mask" in batch:
            known = batch["mask_labelled"][number].tolist() if "mask_labelled" in batch else None
            masks = {frame: batch["mask"][number, frame] for frame in frames if known is None or known[frame]}
            masks = {frame: mask for frame, mask in masks.items() if (mask != UNLABELLED).any()}
            if masks:
                return prompts_from(masks, objects(self.classes), self.prompt_from)
        raise DataError(
            "it has neither a prompt nor an annotated frame, and sam2-video segments only what is pointed out. Give it "
            "prompts (medvid-run predict --prompts FILE), or take a model that needs none."
        )

    def _follow(self, clip: Tensor, frames: Sequence[int], prompts: Sequence[Prompt]) -> dict[int, dict[int, Tensor]]:
        """The network's small masks, of each prompted class: frame → logits [h,w]."""
        images = _Images(clip, frames, self.net.image_size, self.net.dtype)
        # one cache for all objects, which are followed side by side: so each picture is encoded once
        features = _library().Sam2VideoInferenceCache(self.net.device, self.net.device)
        tracks = {prompt["class"]: _Track(self.net, images, features) for prompt in prompts}
        for prompt in sorted(prompts, key=lambda prompt: prompt["frame"]):
            tracks[prompt["class"]].point_out(frames.index(prompt["frame"]), prompt, clip.shape[-2:])
        found: dict[int, dict[int, Tensor]] = {number: {} for number in tracks}
        positions = range(len(frames))
        for reverse in (False, True):
            for position in reversed(positions) if reverse else positions:
                for number, track in tracks.items():
                    if reverse == (position < track.first):
                        found[number][frames[position]] = track.step(position, reverse)
        return found

    def _logits(self, clip: Tensor, found: Mapping[int, Mapping[int, Tensor]]) -> Tensor:
        """Logits [T,K,H,W] from the small masks."""
        size = tuple(clip.shape[-2:])
        absent = torch.full(size, ABSENT, device=self.net.device)

        def logits(number: int, frame: int) -> Tensor:
            small = found.get(number, {}).get(frame)
            if small is None:
                return absent
            return F.interpolate(small[None, None], size, mode="bilinear", align_corners=False)[0, 0]

        frames = range(len(clip))
        maps = torch.stack(
            [torch.stack([logits(number, frame) for number in objects(self.classes)]) for frame in frames]
        )
        return maps if self.classes == 1 else torch.cat([torch.zeros_like(maps[:, :1]), maps], 1)


class _Images:
    """The real frames of a clip as the network takes them, [3,S,S]; each is made when it is asked for."""

    def __init__(self, clip: Tensor, frames: Sequence[int], side: int, dtype: torch.dtype) -> None:
        self.clip, self.frames, self.side, self.dtype = clip, frames, side, dtype

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> Tensor:
        frame = self.clip[self.frames[position]].to(self.dtype)[None]
        size = (self.side, self.side)
        return F.interpolate(frame, size, mode="bilinear", align_corners=False, antialias=True)[0]


class _Track:
    """One object of a clip and what SAM 2 remembers of it; frames are counted among the real ones.

    Attributes:
        first: its first prompted frame.
    """

    def __init__(self, net: Network, images: _Images, features: Any) -> None:
        self.net = net
        self.session = _library().Sam2VideoInferenceSession(
            inference_device=net.device, inference_state_device=net.device, dtype=net.dtype
        )
        self.session.processed_frames = images
        self.session.cache = features
        self.session.obj_id_to_idx(1)
        self.first = len(images)

    def point_out(self, position: int, prompt: Prompt, size: Sequence[int]) -> None:
        """Segment a prompted frame and remember it; ``size``: height and width in whose pixels the prompt is."""
        if prompt.get("mask") is not None:
            self.session.add_mask_inputs(0, position, _mask_input(prompt["mask"], self.net.image_size))
        else:
            self.session.add_point_inputs(0, position, _point_inputs(prompt, size, self.net.image_size))
        self.session.obj_with_new_inputs = [1]
        self.first = min(self.first, position)
        self.step(position)

    def step(self, position: int, reverse: bool = False) -> Tensor:
        """Return the logits [h,w] of a frame; `reverse`: on the way back. Frames are asked for in their order."""
        step = inspect.unwrap(type(self.net).forward)  # without its inference_mode: gradients may be wanted
        logits: Tensor = step(self.net, self.session, frame_idx=position, reverse=reverse).pred_masks[0, 0]
        self._forget(position, reverse)
        return logits.float()

    def _forget(self, position: int, reverse: bool) -> None:
        """Drop what no later step looks at; the way back will begin beside the first prompted frame."""
        remembered = self.session.output_dict_per_obj[0]
        tracked = remembered["non_cond_frame_outputs"]
        reach = max(self.net.config.num_maskmem, self.net.config.max_object_pointers_in_encoder)
        places = (position,) if reverse else (position, self.first)
        for old in [other for other in tracked if min(abs(other - place) for place in places) > reach]:
            del tracked[old]
        for kept in remembered.values():
            kept.get(position, {}).pop("high_res_masks", None)  # large, and of use within the step only


def _mask_input(mask: Tensor, side: int) -> Tensor:
    """A mask [H,W] as the library's processor makes it: [1,1,S,S], 0 or 1."""
    resized = F.interpolate(
        torch.as_tensor(mask).float()[None, None], (side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return (resized >= 0.5).float()


def _point_inputs(prompt: Prompt, size: Sequence[int], side: int) -> dict[str, Tensor]:
    """Box and points as the library's processor makes them: [1,1,N,2] in the network's pixels, and labels [1,1,N]."""
    points, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    if prompt.get("box") is not None:
        points = torch.as_tensor(prompt["box"]).cpu().float().view(2, 2)
        labels = torch.tensor(_CORNERS, dtype=torch.int32)
    if prompt.get("points") is not None:
        points = torch.cat([points, torch.as_tensor(prompt["points"]).cpu().float()])
        labels = torch.cat([labels, torch.as_tensor(prompt["labels"]).cpu().int()])
    scale = torch.tensor([side / size[1], side / size[0]])
    return {"point_coords": (points * scale)[None, None], "point_labels": labels[None, None]}


def _usable(prompts: Sequence[Prompt], classes: int, frames: Sequence[int], size: Sequence[int]) -> list[Prompt]:
    """The prompts of one clip as tensors; those that cannot be used are refused."""
    check_prompts(prompts, classes, frames, size)
    found: list[Prompt] = []
    for prompt in prompts:
        parts = {key: torch.as_tensor(prompt[key]) for key in _PARTS if prompt.get(key) is not None}
        if "mask" in parts and len(parts) > 1:
            raise DataError(
                f"The prompt of class {prompt['class']} on frame {prompt['frame']}: SAM 2 takes a mask by itself, "
                "without points and box. Leave out either."
            )
        found.append({"class": prompt["class"], "frame": prompt["frame"], **parts})
    return found


def prompts_from(masks: Mapping[int, Tensor], objects: Sequence[int], kind: str) -> list[Prompt]:
    """Return a prompt for each object, on the first of the annotated frames that shows it.

    Args:
        masks: frame, rising → class of each pixel [H,W].
        objects: classes to point out; those that no frame shows get no prompt.
        kind: ``mask``; ``box``, of the outermost pixels; or ``point``, the pixel furthest from the edge of the mask and
            of the picture, as the first click of SAM's evaluation.
    """
    prompts: list[Prompt] = []
    for number in objects:
        frame = next((frame for frame, mask in masks.items() if (mask == number).any()), None)
        if frame is None:
            continue
        mask = masks[frame] == number
        prompt: dict[str, Any] = {"class": number, "frame": frame}
        if kind == "mask":
            prompt["mask"] = mask
        elif kind == "box":
            y, x = mask.any(1).nonzero(), mask.any(0).nonzero()
            prompt["box"] = [float(edge) for edge in (x[0], y[0], x[-1], y[-1])]
        else:
            depth = distance_transform_edt(np.pad(mask.cpu().numpy(), 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            prompt |= {"points": [[float(column), float(row)]], "labels": [1]}
        prompts.append(prompt)
    return prompts


def _load(weights: str) -> Network:
    """The network of a local folder; on the meta device its shapes alone."""
    wanted = (
        f"SAM 2 needs a folder with {' and '.join(FILES)} of a checkpoint for transformers, e.g. those of "
        "facebook/sam2.1-hiera-tiny; name it with model.weights=FOLDER. medvid fetches nothing, and reads no pickled "
        "weights (pytorch_model.bin, .pt)"
    )
    if not weights:
        raise ConfigError(f"model.weights names no folder: {wanted}.")
    folder = Path(weights).expanduser()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"model.weights={weights}: there is no {' and no '.join(missing)}. {wanted}.")
    library = _library()
    try:
        if torch.get_default_device().type == "meta":
            config = library.Sam2VideoConfig.from_pretrained(folder, local_files_only=True)
            return library.Sam2VideoModel(config)
        net, report = library.Sam2VideoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # damaged and foreign files fail in many ways
        raise CheckpointError(f"{folder} cannot be read as SAM 2 for video: {error}. {wanted}.") from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise CheckpointError(
            f"{folder / FILES[1]} lacks {len(absent)} entries of SAM 2 for video, e.g. {', '.join(absent[:3])}. "
            f"{wanted}."
        )
    # its tensors lie in the mapped file, where they happen to: on memory of their own the last bits are always the same
    return copy.deepcopy(net)


def _random() -> Network:
    """A network as small as the library's code allows (memory of 64 channels, and more in the features)."""
    library = _library()
    side, width = 64, 128
    config = library.Sam2VideoConfig(
        image_size=side,
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [side, side],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 24, 32],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [4, 4, 2, 2],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [32, 24, 16, 8],
            "backbone_feature_sizes": [[side // stride, side // stride] for stride in (4, 8, 16)],
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": side},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": width,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": width,
        },
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=width,
        memory_attention_rope_feat_sizes=[side // 16, side // 16],
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=width,
    )
    net = library.Sam2VideoModel(config)
    # untrained, the score that decides whether an object is hidden is noise, and what is hidden has no gradient
    nn.init.constant_(net.mask_decoder.pred_obj_score_head.proj_out.bias, 10.0)
    return net


@functools.cache
def _library() -> Any:
    """The library's module of SAM 2 for video.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    try:
        with _without_broken_torchaudio():
            from transformers.models.sam2_video import modeling_sam2_video
    except ImportError as error:
        raise ConfigError(f"SAM 2 needs transformers 5 or later ({error}). Type: {INSTALL}") from error
    return modeling_sam2_video


@contextmanager
def _without_broken_torchaudio() -> Iterator[None]:
    """Put an empty module in the place of a torchaudio that is there and cannot be imported.

    transformers imports it for models of sound, and fails with it. spikingjelly, an extra of another plugin, brings one
    along that refuses a torch built for another CUDA version.
    """
    name = "torchaudio"
    if not _is_broken(name):
        yield
        return
    empty = ModuleType(name)
    empty.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = empty
    try:
        yield
    finally:
        del sys.modules[name]


def _is_broken(name: str) -> bool:
    """Whether a module is installed and fails on import."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except Exception:  # whatever it is: transformers would meet it too
        return True
    return False


def build_sam2_video(config: SAM2Config, outputs: tuple[OutputSpec, ...]) -> SAM2Video:
    """Build SAM 2 for one segmentation output.

    Raises:
        ConfigError: other tasks, several outputs, no ``model.weights``, or transformers is not installed.
        CheckpointError: the folder lacks a file, or holds something else.
    """
    if len(outputs) != 1 or outputs[0].task != "segmentation":
        asked = ", ".join(f"{output.name} ({output.task})" for output in outputs) or "none"
        raise ConfigError(f"SAM 2 predicts exactly one segmentation; asked for: {asked}.")
    return SAM2Video(config, outputs[0])
