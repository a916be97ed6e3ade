"""Fixtures computed by the original code, and how far this code is from them.

The tests assert the rows, and as a script this prints their table, from the repository:
``python plugins/two_stream/tests/golden.py > benchmarks/results/parity_two_stream.md``. The fixtures' folder lies
beside the repository; where it is absent nothing can be compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor, nn

from medvid_core.specs import OutputSpec
from medvid_core.testing.parity import Fixtures, Row, compare, load_module, part, print_table, read_tensors, read_values
from medvid_two_stream.config import (
    AttentionBranchConfig,
    CNNLSTMConfig,
    TwoStreamConfig,
    TwoStreamLossConfig,
    from_upstream,
)
from medvid_two_stream.losses import TwoStreamLoss
from medvid_two_stream.network import build_attention_branch, build_cnn_lstm, build_two_stream
from medvid_two_stream.network.attention import CrossAttentionFusion
from medvid_two_stream.network.decision import log_mean_probability, log_probability
from medvid_two_stream.network.inputs import as_pictures, uniform_temporal_subsample
from medvid_two_stream.network.slow import SlowResNet, head_window
from medvid_two_stream.network.stream import ClipStream, FrameStream, Head, Published, Stream
from medvid_two_stream.network.two_stream import TwoStream

FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "two_stream"

LOGIT, LOSS, HALF, EXACT, GRADIENT = 2e-4, 1e-6, 1e-3, 0.0, 1e-4
"""Tolerances: of logits and features, of losses, of what is stored in half precision; of gradients, as their norm."""

ASD = (OutputSpec(name="asd", task="classification", classes=("ASD", "non-ASD")),)
THREE = (OutputSpec(name="asd", task="classification", classes=("ASD", "DHS", "LCS_HipOA")),)
R50 = (3, 4, 6, 3)

read, read_json = partial(read_tensors, FOLDER), partial(read_values, FOLDER)


def same(what: str, got: Any, wanted: Any) -> Row:
    """Equal or not."""
    return compare(what, got == wanted, True, EXACT)


def det() -> ModuleType:
    """The module that makes the fixtures' weights and inputs."""
    return load_module(FOLDER / "det.py")


def fill(module: nn.Module, name: Callable[[str], str]) -> None:
    """Give every entry the value that the fixtures' weights have under another name."""
    make = det().det_tensor
    state = {key: make(name(key), tuple(value.shape)).to(value.dtype) for key, value in module.state_dict().items()}
    module.load_state_dict(state)


def torchvision_name(prefix: str) -> Callable[[str], str]:
    return lambda key: prefix + key.replace("body.", "").replace("head.proj", "fc")


def moving(frames: int, size: int, block: int, seed: int) -> Tensor:
    """RGB [1,3,T,H,W] in [0, 1]."""
    video: Tensor = det().moving_video(frames, size, block, seed=seed)
    return video[None].float() / 255


def as_flow(video: Tensor) -> Tensor:
    """The fixtures' stand-in for flow, [B,2,T,H,W]."""
    return 4 * torch.stack([video[:, 0] - video[:, 1], video[:, 1] - video[:, 2]], 1)


# the slow network --------------------------------------------------------------------------------------------------


def narrow() -> tuple[SlowResNet, dict[str, Tensor]]:
    """The network of width 8 with the weights of its fixture, which pools over windows of 8x2x2."""
    tensors = read("slow_r50_narrow_rgb")
    net = SlowResNet(3, Head(256, 2, window=(8, 2, 2), one_logit=True), R50, 8)
    net.load_state_dict(part(tensors, "w."))
    return net.eval(), tensors


@torch.no_grad()
def narrow_rows() -> Iterator[Row]:
    """Every block of the narrow network."""
    net, tensors = narrow()
    x = tensors["x"]
    for number, block in enumerate(net.blocks[:5]):
        x = block(x)
        wanted = tensors[f"out.blocks.{number}"]
        yield compare(f"blocks.{number}", x, wanted, HALF, HALF)
    yield compare("maps", net.maps(tensors["x"]), x, EXACT)
    pooled = net.classifier.pool(x)
    yield compare("head_pool", pooled.permute(0, 4, 1, 2, 3), tensors["head_pool"], LOGIT)
    windows = net.classifier.proj(pooled)
    yield compare("proj_per_window", windows.flatten(), tensors["proj_per_window"].flatten(), LOGIT)
    yield compare("logit", net(tensors["x"]), torch.tensor([[0.0, tensors["logit"].item()]]), LOGIT)


def wide(channels: int, scratch: bool) -> SlowResNet:
    head = Head(2048, 2, window=head_window(scratch), one_logit=True)
    return SlowResNet(channels, head, R50, 64, scratch).eval()


@torch.no_grad()
def wide_rows() -> Iterator[Row]:
    """The streams at full width, 224 pixels."""
    for case in read_json("slow_r50_streams")["cases"]:
        scratch = case["pretrained_branch_arch"].startswith("scratch")
        net = wide(3 if case["stream"] == "rgb" else 2, scratch)
        fill(net, lambda key, prefix=case["key_prefix"]: prefix + key)
        title = f"{case['stream']}, T={case['T']}{', scratch' if scratch else ''}"
        x = moving(case["T"], 224, 16, seed=11)
        x = x if case["stream"] == "rgb" else as_flow(x)
        for number, block in enumerate(net.blocks[:5]):
            x = block(x)
            yield probe_row(f"{title}: blocks.{number}", x, case["blocks"][f"blocks.{number}"])
        pooled = net.classifier.pool(x)
        yield probe_row(f"{title}: head.pool", pooled.permute(0, 4, 1, 2, 3), case["blocks"]["head.pool"])
        windows = net.classifier.proj(pooled).flatten()
        yield compare(f"{title}: proj_per_window", windows, case["proj_per_window"], LOGIT)
        yield compare(f"{title}: logit", net.classifier(x)[0, 1:], case["logit"], LOGIT)


def probe_row(what: str, got: Tensor, wanted: Mapping[str, Any]) -> Row:
    """Compare the values and the statistics that the fixture holds of a large tensor."""
    assert list(got.shape) == wanted["shape"], what
    flat = got.flatten().double()
    ours = [*flat[wanted["idx"]].tolist(), flat.mean().item(), flat.std().item(), flat.abs().max().item()]
    return compare(what, ours, [*wanted["val"], wanted["mean"], wanted["std"], wanted["absmax"]], LOGIT)


def original(model: str, fusion: str = "different_loss", transfor_learning: bool = True) -> TwoStream:
    """The original's network, without memory for its weights."""
    config = from_upstream({"model": model, "fusion": fusion, "transfor_learning": transfor_learning})
    with torch.device("meta"):
        return build_two_stream(config, ASD)


def their_names(stream: Stream) -> dict[str, list[int]]:
    """Names, as in the original's checkpoints, and shapes of a stream's entries."""
    name = (lambda key: key) if isinstance(stream, SlowResNet) else torchvision_name("")
    return {name(key): list(value.shape) for key, value in stream.state_dict().items()}


def listing_rows() -> Iterator[Row]:
    """Every key and shape of the original's checkpoints, RAFT's apart."""
    for model, entries in read_json("state_dict_listing").items():
        net = original(model.removesuffix("_scratch"), transfor_learning=not model.endswith("_scratch"))
        wanted = {key: shape for key, shape, _ in entries if not key.startswith("optical_flow_model.")}
        ours = {
            f"model_{name}.{key}": shape for name in net.streams for key, shape in their_names(net.stream(name)).items()
        }
        yield same(f"{model}: {len(wanted)} keys, in their order", list(ours.items()), list(wanted.items()))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_rows() -> Iterator[Row]:
    """Numbers of parameters."""
    for model, wanted in read_json("param_counts").items():
        net = original(model.removesuffix("_scratch"), transfor_learning=not model.endswith("_scratch"))
        for name in ("rgb", "flow"):
            yield same(f"{model}, {name}", count(net.stream(name)), wanted[name])
        yield same(f"{model}, without RAFT", count(net), wanted["total"] - wanted["raft_large"])


# fusion and losses -------------------------------------------------------------------------------------------------


def stand_in(channels: int, per_frame: bool, scrambled: bool) -> Stream:
    """The fixture's stand-in for a stream, with its weights."""
    kind = (nn.Conv2d, 3, 2) if per_frame else (nn.Conv3d, (1, 3, 3), (1, 2, 2))
    body = nn.Sequential(OrderedDict(c=kind[0](channels, 4, kind[1], kind[2]), relu=nn.ReLU()))
    head = Head(4, 2, one_logit=True, per_frame=per_frame)
    published = Published("c.weight", "l")
    stream = FrameStream(body, head, published, scrambled) if per_frame else ClipStream(body, head, published)
    fill(stream, lambda key: key.replace("body.", "").replace("head.proj", "l"))
    return stream


def with_stand_ins(config: TwoStreamConfig) -> TwoStream:
    with torch.device("meta"):
        net = build_two_stream(config, ASD)
    for name, channels in (("rgb", 3), ("flow", 2)):
        net.streams[name] = stand_in(channels, config.trunk_of(name) == "resnet50", config.compat)
    return net


def fusion_batch(frames: int) -> dict[str, Any]:
    """The fixture's clips as medvid gives them: time before channels, and a place for the last frame's flow."""
    tensors, label = read("fusion_logic"), torch.tensor(read_json("fusion_logic")["label"])
    flow = tensors[f"flow_T{frames}"].transpose(1, 2)
    return {
        "video": (tensors[f"video_T{frames}"].float() / 255).transpose(1, 2).contiguous(),
        "flow": torch.cat([flow, torch.zeros_like(flow[:, :1])], 1),
        "frame_real": torch.ones(len(label), frames, dtype=torch.bool),
        "targets": {"asd": label},
        "targets_present": {"asd": torch.ones(len(label), dtype=torch.bool)},
    }


def loss_of(net: TwoStream, outputs: Mapping[str, Tensor], batch: Mapping[str, Any], average: bool) -> Tensor:
    loss = TwoStreamLoss(TwoStreamLossConfig(average=average), ASD)
    return loss(outputs, batch)["asd"] / loss.counts(batch)["asd"]


def fusion_rows() -> Iterator[Row]:
    """All six combinations of networks and losses."""
    tensors = read("fusion_logic")
    for case in read_json("fusion_logic")["cases"]:
        title, model, batch = f"{case['model']}, {case['fusion']}", case["model"], fusion_batch(case["T"])
        net = with_stand_ins(from_upstream({"model": model, "fusion": case["fusion"]}))
        seen, logits = net.seen(batch), {}
        for name in ("rgb", "flow"):
            stream = net.stream(name)
            pictures = as_pictures(seen[name], scrambled=True) if isinstance(stream, FrameStream) else seen[name]
            wanted = tensors[f"{model}.seen_{name}{'_u8' if name == 'rgb' else ''}"]
            yield compare(f"{title}: what {name} sees", pictures, wanted / 255 if name == "rgb" else wanted, EXACT)
            logits[name] = stream(seen[name])
            yield compare(f"{title}: logits of {name}", logits[name][..., 1].flatten(), case[f"logits_{name}"], LOGIT)
        outputs = net(batch)
        average = model == "multi_single" and case["fusion"] == "different_loss"
        loss = loss_of(net, outputs, batch, average)
        yield compare(f"{title}: loss", loss, case["loss"], LOSS)
        loss.backward()
        yield from gradient_rows(title, net, case["grad_norms"])
        yield from decision_rows(title, outputs["asd"], logits, case)


def gradient_rows(title: str, net: TwoStream, wanted: Mapping[str, float]) -> Iterator[Row]:
    names = {"c.weight": "body.c.weight", "c.bias": "body.c.bias", "l.weight": "head.proj.weight"}
    for key, norm in wanted.items():
        stream, entry = key.removeprefix("model_").split(".", 1)
        parameter = net.stream(stream).get_parameter(names.get(entry, "head.proj.bias"))
        assert parameter.grad is not None
        yield compare(f"{title}: gradient of {key}", parameter.grad.norm(), norm, LOSS, GRADIENT)


def decision_rows(title: str, decided: Tensor, logits: Mapping[str, Tensor], case: Mapping[str, Any]) -> Iterator[Row]:
    """Probabilities, of frames where the fixture holds those, and of the clip: their mean."""
    steps = [each if each.dim() == 3 else each[:, None] for each in logits.values()]
    every = torch.cat(torch.broadcast_tensors(*steps)).softmax(-1)[..., 1].unflatten(0, (2, -1)).mean(0)
    wanted = torch.tensor(case["final_prob_mean_of_sigmoids"])
    yield compare(f"{title}: probabilities", every.flatten(), wanted, LOSS)
    clips = wanted.view(len(decided), -1).mean(1)
    yield compare(f"{title}: decision", decided.softmax(1)[:, 1], clips, LOSS)
    fused = ((steps[0] + steps[1]) / 2).softmax(-1)[..., 1]
    yield compare(f"{title}: mean of logits", fused.flatten(), case["sigmoid_of_mean_logit"], LOSS)


def fixed_rows() -> Iterator[Row]:
    """The 2D networks with channels and time in order, which is our default."""
    wanted, batch = read_json("fusion_logic")["single_fixed"], fusion_batch(31)
    for fusion, loss in (("separate", "loss_different"), ("sum", "loss_sum")):
        net = with_stand_ins(TwoStreamConfig(trunk="resnet50", fusion=fusion))
        outputs = net(batch)
        yield compare(loss, loss_of(net, outputs, batch, average=False), wanted[loss], LOSS)
        if fusion == "separate":
            logits = [outputs[f"asd/{name}"] for name in ("rgb", "flow")]
            for name, each in zip(("rgb", "flow"), logits, strict=True):
                yield compare(f"logits_{name}", each[..., 1].flatten(), wanted[f"logits_{name}"], LOGIT)
            clip = wanted["clip_prob_mean_over_frames"]
            yield compare("clip_prob_mean_over_frames", outputs["asd"].softmax(1)[:, 1], clip, LOSS)
            real = batch["frame_real"]
            mean = log_mean_probability([log_probability(each, real) for each in logits]).exp()
            yield compare("the softmax of the output is the mean probability", outputs["asd"].softmax(1), mean, LOSS)


def scramble_rows() -> Iterator[Row]:
    """Which planes the original's pictures are made of."""
    wanted = read_json("fusion_logic")["single_scramble_T31"]
    for channels, key in (
        (3, "rgb_image_k_planes_as_(channel,frame)"),
        (2, "flow_image_k_planes_as_(component,frame)"),
    ):
        planes = torch.cartesian_prod(torch.arange(channels), torch.arange(30)).view(1, channels, 30, 2, 1)
        ours = as_pictures(planes, scrambled=True)[..., 0].tolist()
        yield same(key, ours, wanted[key])


# baselines ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def lstm_rows() -> Iterator[Row]:
    """ResNet-50 and LSTM."""
    case = read_json("baselines")["cnn_lstm"]
    net = build_cnn_lstm(CNNLSTMConfig(), THREE).eval()
    yield same("cnn_lstm: parameters", count(net), case["params"])
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    yield same("cnn_lstm: keys", [[key, shapes.get(key)] for key, _ in case["keys"]], case["keys"])
    fill(net, lambda key: key)
    clips = torch.cat([moving(4, 64, 8, seed=41 + number) for number in range(2)])
    yield compare("cnn_lstm: logits", net.frames(clips).flatten(0, 1), case["logits"], LOGIT)


@torch.no_grad()
def image_rows() -> Iterator[Row]:
    """ResNet-50 on single frames."""
    clips = torch.cat([moving(4, 64, 8, seed=41 + number) for number in range(2)])
    config = from_upstream({"model": "single"})
    for name, clip in (("rgb", clips), ("flow", as_flow(clips))):
        case = read_json("baselines")[f"resnet50_single_{name}"]
        stream = build_two_stream(TwoStreamConfig(**{**vars(config), "inputs": (name,)}), ASD).stream(name).eval()
        yield same(f"resnet50_single_{name}: parameters", count(stream), case["params"])
        fill(stream, torchvision_name(case["key_prefix"]))
        logits = stream(clip[:, :, :1])[..., 1].flatten()
        yield compare(f"resnet50_single_{name}: logit", logits, case["logit"], LOGIT)


def attention_branch_rows() -> Iterator[Row]:
    """The attention branch; the fixture's values depend on names of parameters that are not known."""
    case = read_json("baselines")["atn3dcnn"]
    with torch.device("meta"):
        net = build_attention_branch(AttentionBranchConfig(compat=True), THREE)
    yield same("atn3dcnn: parameters", count(net), case["params"])
    maps = torch.rand(1, 2048, 8, 7, 7)
    net = build_attention_branch(AttentionBranchConfig(compat=True), THREE)
    yield same("atn3dcnn: shape of the map", list(net.attend(maps)[0].shape), case["att"]["shape"])


@torch.no_grad()
def early_rows() -> Iterator[Row]:
    """Pictures, flow and mask joined channel by channel, at full width."""
    case = read_json("baselines")["multicue_concat"]
    config = TwoStreamConfig(inputs=("rgb+flow+mask",), compat=True)
    net = build_two_stream(config, THREE).eval()
    yield same("multicue_concat: parameters", count(net), case["params"])
    stream = net.stream("rgb+flow+mask")
    fill(stream, lambda key: f"model.{key}")
    video = moving(8, 224, 16, seed=11)
    joined = torch.cat([video, as_flow(video), (video.mean(1, keepdim=True) > 0.5).float()], 1)
    yield compare("multicue_concat: logits", stream(joined), case["logits"], LOGIT)


@torch.no_grad()
def cross_attention_rows() -> Iterator[Row]:
    """Features that ask a map; the original's bias of the keys cancels in the softmax, and is not there."""
    tensors = read("cross_attention_fusion")
    fusion = CrossAttentionFusion(8, 1)
    weights = part(tensors, "w.")
    weights.pop("key_proj.bias")
    fusion.load_state_dict(weights)
    yield compare("out", fusion(tensors["x"], tensors["context"]), tensors["out"], LOGIT)


def sampling_rows() -> Iterator[Row]:
    """Which frames are chosen."""
    for key, wanted in read_json("temporal_sampling")["uniform_temporal_subsample"].items():
        frames, chosen = map(int, key.split("->"))
        yield same(key, uniform_temporal_subsample(frames, chosen), wanted)


# attribution -------------------------------------------------------------------------------------------------------


def explained() -> tuple[Tensor, Tensor]:
    """The last features [1,D,T,h,w] of the narrow network, and the gradient of the logit of non-ASD."""
    net, tensors = narrow()
    kept: list[Tensor] = []
    net.out.register_forward_hook(lambda _, __, maps: kept.append(maps))
    logit = net(tensors["x"])[0, 1]
    (gradient,) = torch.autograd.grad(logit, kept)
    return kept[0].detach(), gradient


def integrated(steps: int) -> Tensor:
    """Integrated gradients (Sundararajan et al., ICML 2017) from 0, by Gauss and Legendre's rule."""
    net, tensors = narrow()
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(tensors["x"])
    for place, weight in zip(0.5 * (1 + nodes), 0.5 * weights, strict=True):
        x = (float(place) * tensors["x"]).requires_grad_()
        total += float(weight) * torch.autograd.grad(net(x)[0, 1], x)[0]
    return total * tensors["x"]


def stretched(cam: Tensor) -> np.ndarray[Any, Any]:
    """A map [T,h,w] as pytorch-grad-cam gives it: from 0 to 1, cubic splines to 64 pixels, from 0 to 1 again."""

    def scaled(values: Any) -> Any:
        values = values - values.min()
        return values / (1e-7 + values.max())

    return np.asarray(scaled(np.maximum(zoom(scaled(cam.double().numpy()), (1, 32, 32)), 0)))


def attribution_rows() -> Iterator[Row]:
    """Grad-CAM, LayerCAM and Grad-CAM++ at ``out``, and integrated gradients."""
    tensors = read("attribution")
    maps, gradient = explained()

    def cam(weights: Tensor) -> Tensor:
        return (weights * maps).sum(1, keepdim=True).relu()

    for name, signed in (("pos", gradient), ("neg", -gradient)):
        yield compare(f"gradcam_{name}", cam(signed.mean((2, 3, 4), keepdim=True)), tensors[f"gradcam_{name}"], LOSS)
        yield compare(f"layercam_{name}", cam(signed.relu()), tensors[f"layercam_{name}"], LOSS)
    alpha = gradient**2 / (2 * gradient**2 + maps.sum((2, 3, 4), keepdim=True) * gradient**3 + 1e-6)
    plus = (gradient.relu() * alpha).sum((2, 3, 4), keepdim=True)
    theirs = {"GradCAM": gradient.mean((2, 3, 4), keepdim=True), "GradCAMPlusPlus": plus, "LayerCAM": gradient.relu()}
    for name, weights in theirs.items():
        yield compare(f"pgc_{name}", stretched(cam(weights)[0, 0])[None], tensors[f"pgc_{name}"], HALF)
    wanted = tensors["ig_16steps_gausslegendre"]
    yield compare("ig_16steps_gausslegendre", integrated(16), wanted, LOSS, HALF)


FIXTURES: Fixtures = {
    "slow_r50_narrow_rgb": narrow_rows,
    "state_dict_listing": listing_rows,
    "param_counts": count_rows,
    "fusion_logic": fusion_rows,
    "fusion_logic, single_fixed": fixed_rows,
    "fusion_logic, single_scramble_T31": scramble_rows,
    "baselines, cnn_lstm": lstm_rows,
    "baselines, resnet50": image_rows,
    "baselines, atn3dcnn": attention_branch_rows,
    "cross_attention_fusion": cross_attention_rows,
    "temporal_sampling": sampling_rows,
    "attribution": attribution_rows,
    "slow_r50_streams": wide_rows,
    "baselines, multicue_concat": early_rows,
}

if __name__ == "__main__":
    print_table(
        "Two-stream network against the original",
        "Fixtures were computed by the original code, and by its family's, on the same weights.",
        FIXTURES,
    )
