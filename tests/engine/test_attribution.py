"""Attribution: each method against what can be computed by hand, and what is asked of which output."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medvid_core.data.clip import Batch
from medvid_core.engine.attribution import (
    METHODS,
    Asked,
    GradCam,
    IntegratedGradients,
    Question,
    ask,
    at_frames,
    differentiable,
    explained_output,
    predicted_question,
)
from medvid_core.errors import ConfigError
from medvid_core.models import ModelInfo
from medvid_core.specs import ClipSpec, OutputSpec

VIEW = OutputSpec(name="view", task="classification", classes=("a", "b", "c"))
SICK = OutputSpec(name="sick", task="classification", classes=("well", "ill"))
SIGNS = OutputSpec(name="signs", task="multilabel", classes=("wet", "dry"))
GRADE = OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2"))
EF = OutputSpec(name="ef", task="regression", classes=("ef",))
MASK = OutputSpec(name="mask", task="segmentation", classes=("lv",))


def info(*outputs, streams=("video",), frames=4):
    clip = ClipSpec(streams=streams)
    return ModelInfo("test/net", "1", {}, outputs, clip, frames=frames, size=(12, 10))


class Net(nn.Module):
    """One convolution over space and time, and a linear layer over the mean of its features."""

    attribution_layer = "maps"

    def __init__(self, output=VIEW, one_logit=False):
        super().__init__()
        torch.manual_seed(1)
        self.output, self.one_logit = output, one_logit
        self.maps = nn.Sequential(nn.Conv3d(3, 5, 3, stride=(2, 2, 2), padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(5, 1 if one_logit else len(output.classes) - (output.task == "ordinal"))

    def forward(self, batch):
        logits = self.head(self.maps(batch["video"].transpose(1, 2)).mean((2, 3, 4)))
        return {self.output.name: F.pad(logits, (1, 0)) if self.one_logit else logits}


class TwoStreams(nn.Module):
    """An image network on each frame, and one of the motion between frames."""

    def __init__(self):
        super().__init__()
        self.attribution_layer = {"rgb": "image", "flow": "motion"}
        torch.manual_seed(2)
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
        self.motion = nn.Sequential(nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=(1, 0, 0)), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, batch):
        seen = self.image(batch["video"].flatten(0, 1))
        moved = self.motion(batch["flow"][:, :-1].transpose(1, 2))
        features = torch.cat(
            [seen.mean((2, 3)).unflatten(0, batch["video"].shape[:2]).mean(1), moved.mean((2, 3, 4))], 1
        )
        return {"sick": self.head(features)}


def clip(frames=4, **streams) -> Batch:
    torch.manual_seed(3)
    video = torch.randn(1, frames, 3, 12, 10)
    return {"video": video, "frame_real": torch.ones(1, frames, dtype=torch.bool), **streams}


def attribute(method, net, question, batch, about):
    asked = Asked(net.eval().requires_grad_(False))
    asked.question = question
    with differentiable(asked):
        found = METHODS[method](asked, about).attribute(batch)
    assert not any(module.training for module in net.modules())
    return found


def by_hand(net, question, batch):
    """Grad-CAM as the paper writes it (equations 1 and 2), at the size of the layer."""
    features = net.maps(batch["video"].transpose(1, 2)).detach().requires_grad_()
    logits = net.head(features.mean((2, 3, 4)))
    odds = logits.softmax(1)[:, question.number]
    (gradient,) = torch.autograd.grad((odds / (1 - odds)).log().sum(), features)
    return (gradient.mean((2, 3, 4), keepdim=True) * features).sum(1).relu()[0].detach()


@pytest.mark.parametrize("number", range(3))
def test_grad_cam_is_that_of_the_paper(number):
    net, batch, question = Net(), clip(), Question(VIEW, number)
    expected = by_hand(Net(), question, batch)
    found = attribute("grad-cam", net, question, batch, info(VIEW)).maps["video"]
    assert found.shape == (4, 12, 10)
    assert expected.max() > 0
    torch.testing.assert_close(found, at_frames(expected, (4, 12, 10)))


def test_log_odds_of_a_softmax():
    raw = torch.tensor([[0.3, -1.0, 2.0]])
    p = raw.softmax(1)[0]
    for number in range(3):
        assert Question(VIEW, number).score(raw).item() == pytest.approx(
            math.log(p[number] / (1 - p[number])), abs=1e-5
        )
        assert Question(VIEW, number, negated=True).score(raw) == -Question(VIEW, number).score(raw)


@pytest.mark.parametrize("method", METHODS)
def test_the_class_asked_flips_the_sign_of_a_network_with_one_logit(method):
    """Of both classes the single logit says something, with opposite signs."""
    batch, about = clip(), info(SICK)
    ill = attribute(method, Net(SICK, one_logit=True), ask(SICK, "ill"), batch, about).maps["video"]
    well = attribute(method, Net(SICK, one_logit=True), ask(SICK, "well"), batch, about).maps["video"]
    assert ill.abs().max() > 0
    assert well.abs().max() > 0
    if method == "integrated-gradients":
        torch.testing.assert_close(ill, -well)
    else:
        assert not ((ill > 1e-6) & (well > 1e-6)).all()
        net = Net(SICK, one_logit=True)
        features = net.maps(batch["video"].transpose(1, 2)).detach()
        signed = (net.head.weight[0, :, None, None, None] * features[0]).sum(0).detach() / features[0, 0].numel()
        torch.testing.assert_close(ill, at_frames(signed.relu(), (4, 12, 10)))
        torch.testing.assert_close(well, at_frames((-signed).relu(), (4, 12, 10)))


@pytest.mark.parametrize(
    ("output", "wanted"), [(VIEW, "b"), (SIGNS, "not dry"), (GRADE, "above 1"), (GRADE, "1"), (EF, "ef")]
)
def test_integrated_gradients_add_up(output, wanted):
    batch, question = clip(), ask(output, wanted)
    found = attribute("integrated-gradients", Net(output), question, batch, info(output))
    net = Net(output).eval()
    with torch.no_grad():
        values = [question.score(net({"video": video})[output.name]) for video in (batch["video"], 0 * batch["video"])]
    expected = float(values[0] - values[1])
    assert abs(expected) > 1e-3
    assert found.difference == pytest.approx(expected, abs=1e-6)
    assert found.maps["video"].sum().item() == pytest.approx(found.attributed, abs=1e-5)
    assert found.attributed == pytest.approx(expected, abs=0.02 * abs(expected) + 1e-4)


def test_more_steps_where_the_maps_do_not_add_up(monkeypatch):
    class Late(nn.Module):
        """Its value begins to rise shortly before the end of the way from nothing to the clip."""

        def forward(self, batch):
            return {"ef": (batch["video"].sum((1, 2, 3, 4)) - 0.97).relu()[:, None]}

    batch = {**clip(), "video": torch.full((1, 4, 3, 12, 10), 1 / 1440)}
    found = attribute("integrated-gradients", Late(), ask(EF, "ef"), batch, info(EF))
    assert found.difference == pytest.approx(0.03, rel=1e-3)
    assert found.attributed == pytest.approx(found.difference, rel=0.05)
    monkeypatch.setattr("medvid_core.engine.attribution.STEPS", (32,))
    fewer = attribute("integrated-gradients", Late(), ask(EF, "ef"), batch, info(EF))
    assert fewer.attributed != pytest.approx(fewer.difference, rel=0.05)


def test_integrated_gradients_of_a_linear_network_are_exact():
    class Linear(nn.Module):
        def forward(self, batch):
            return {"ef": 2 * batch["video"][:, 1].sum((1, 2, 3))[:, None] + batch["flow"].sum((1, 2, 3, 4))[:, None]}

    batch = clip(flow=torch.randn(1, 4, 2, 12, 10))
    found = attribute("integrated-gradients", Linear(), ask(EF, "ef"), batch, info(EF, streams=("video", "flow")))
    video = torch.zeros(4, 12, 10)
    video[1] = 2 * batch["video"][0, 1].sum(0)
    torch.testing.assert_close(found.maps["video"], video)
    torch.testing.assert_close(found.maps["flow"], batch["flow"][0].sum(1))
    assert found.attributed == pytest.approx(found.difference, abs=1e-3)


def test_a_map_for_each_stream():
    """Of frames each with weights of its own; of pairs of frames at the first of them, the last repeated."""
    batch = clip(flow=torch.randn(1, 4, 2, 12, 10))
    about = info(SICK, streams=("video", "flow"))
    net, question = TwoStreams(), ask(SICK, "ill")
    maps = attribute("grad-cam", net, question, batch, about).maps
    assert {name: tuple(value.shape) for name, value in maps.items()} == {"rgb": (4, 12, 10), "flow": (4, 12, 10)}
    weight = (net.head.weight[1] - net.head.weight[0])[:4]
    seen = net.image(batch["video"][0])
    expected = (weight[:, None, None] * seen).sum(1).relu() / (4 * seen[0, 0].numel())
    torch.testing.assert_close(maps["rgb"], at_frames(expected, (4, 12, 10)))
    torch.testing.assert_close(maps["flow"][2], maps["flow"][3])
    assert not torch.allclose(maps["flow"][1], maps["flow"][2])


def test_recurrent_networks_can_be_differentiated_in_evaluation_mode():
    class Recurrent(Net):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(5, 5, batch_first=True)

        def forward(self, batch):
            features = self.maps(batch["video"].transpose(1, 2)).mean((3, 4)).transpose(1, 2)
            return {"view": self.head(self.gru(features)[0][:, -1])}

    net = Recurrent()
    before = torch.backends.cudnn.enabled
    with differentiable(net):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before
    maps = attribute("grad-cam", net, Question(VIEW, 0), clip(), info(VIEW)).maps
    assert maps["video"].isfinite().all()


def test_what_is_predicted_is_asked_for_by_default():
    assert predicted_question(VIEW, torch.tensor([0.2, 0.7, 0.1])).words == "b"
    assert predicted_question(SIGNS, torch.tensor([0.4, 0.3])).words == "wet"
    assert predicted_question(EF, torch.tensor([55.0])).words == "ef"
    assert predicted_question(GRADE, torch.tensor([0.9, 0.8])).words == "above 1"
    assert predicted_question(GRADE, torch.tensor([0.9, 0.2])).words == "above 0"
    lowest = predicted_question(GRADE, torch.tensor([0.2, 0.1]))
    assert lowest.words == "not above 0"
    assert lowest.answer(torch.tensor([0.2, 0.1])) == pytest.approx(0.8)
    for question in (Question(VIEW, 2), Question(VIEW, 0, negated=True), lowest, Question(GRADE, 1)):
        assert ask(question.output, question.words) == question


def test_a_class_whose_name_begins_with_not():
    odd = OutputSpec(name="x", task="classification", classes=("covid", "not covid"))
    assert ask(odd, "not covid") == Question(odd, 1)
    assert ask(odd, "not not covid") == Question(odd, 1, negated=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ask(VIEW, "aa"),
            "--class aa: output 'view' has no such class. Did you mean 'a'? It has: a, b, c.",
        ),
        (
            lambda: ask(GRADE, "2"),
            "--class 2: output 'grade' has no such grade to lie above. It has: 0, 1.",
        ),
        (
            lambda: explained_output(info(VIEW, SIGNS, MASK)),
            "The model has several outputs: say which to explain with --output (view, signs).",
        ),
        (
            lambda: explained_output(info(VIEW), "veiw"),
            "--output veiw: the model has no such output. Did you mean 'view'? It has: view.",
        ),
        (
            lambda: explained_output(info(MASK)),
            "Output 'mask' (segmentation) cannot be explained: it has a value for every frame or pixel. Explained are "
            "outputs of whole videos (classification, multilabel, ordinal, regression), of which this model has none.",
        ),
        (
            lambda: explained_output(info(MASK, VIEW), "mask"),
            "Output 'mask' (segmentation) cannot be explained: it has a value for every frame or pixel. Explained are "
            "outputs of whole videos (classification, multilabel, ordinal, regression), of this model view.",
        ),
    ],
)
def test_questions_that_cannot_be_asked(call, message):
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message


def with_layer(layer):
    net = Net()
    net.unused = nn.Identity()
    net.attribution_layer = layer
    return net


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("", "test/net names no layer for Grad-CAM (the attribute attribution_layer of its network). "),
        ("nowhere", "test/net: Grad-CAM cannot use the layer 'nowhere': it is not in the network. "),
        ("unused", "test/net: Grad-CAM cannot use the layer 'unused': it has no part in what is asked. "),
        (
            "head",
            "test/net: Grad-CAM cannot use the layer 'head': it gives [1, 3], which are no maps [B,C,T,H,W] or "
            "[B*T,C,H,W]. ",
        ),
    ],
)
def test_layers_that_grad_cam_cannot_use(layer, message):
    with pytest.raises(ConfigError) as error:
        attribute("grad-cam", with_layer(layer), Question(VIEW, 0), clip(), info(VIEW))
    assert str(error.value) == message + "Use --method integrated-gradients."


def test_without_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError) as error:
        IntegratedGradients(Asked(Net()), info(VIEW))
    assert str(error.value) == (
        "--method integrated-gradients needs Captum, which is not installed. Install it with: "
        "pip install 'medvid-core[explain]'."
    )
    assert GradCam(Asked(Net()), info(VIEW)).settings() == {"layers": {"video": "maps"}}
