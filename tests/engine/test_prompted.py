"""Prompts reach the model in the clip's coordinates, and are carried from window to window."""

import numpy as np
import pytest
import torch
from torch import nn

from medvid_core import OutputSpec
from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Source
from medvid_core.data.prompts import Prompt
from medvid_core.engine.inference import Windows, segment_case
from medvid_core.specs import ClipSpec

OUTPUT = OutputSpec(name="mask", task="segmentation", classes=("lv",))


def grey(source, frames):
    """Frames whose brightness is their number."""
    return np.stack([np.full((8, 8), frame * 5, np.uint8) for frame in frames])


class Copies(nn.Module):
    """Says of the whole clip what the last mask prompt says, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[int, list[dict]]] = []

    def forward(self, batch):
        (prompts,) = batch["prompts"]
        self.given.append((int(batch["frame_index"][0, 0]), prompts))
        mask = next(p["mask"] for p in reversed(prompts) if "mask" in p)
        logits = torch.where(mask > 0, 9.0, -9.0)
        return {"mask": logits.expand(1, batch["video"].shape[1], 1, 8, 8)}


@pytest.mark.parametrize("prompted", [0, 5, 9])
@pytest.mark.parametrize(("length", "stride", "overlap"), [(4, 1, 0), (4, 1, 2), (3, 2, 0), (20, 1, 0)])
def test_a_mask_is_carried_through_the_whole_video(prompted, length, stride, overlap):
    case = Case(case_id="a", group_id="a", frames=10, streams={"video": Source(reader=f"{__name__}:grey", paths=())})
    clip = ClipConfig(frames=length, stride=stride, size=(8, 8), overlap=overlap)
    spec = ClipSpec(channels=1, mean=(0.0,), std=(1.0,))
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:4] = True
    model = Copies()
    windows = Windows(clip, spec, (), 4, torch.device("cpu"))
    blocks = list(segment_case(model, OUTPUT, case, windows, (Prompt(frame=prompted, label=1, mask=mask),)))
    frames = [frame for block in blocks for frame in block.frames]
    assert frames == list(range(10))
    found = torch.cat([block.probabilities for block in blocks])[:, 0] > 0.5
    assert (found.numpy() == mask).all()
    first, prompts = model.given[0]
    assert first + stride * prompts[0]["frame"] == prompted  # it begins where the user pointed
