"""Checkpoints: to the bit, whole or not at all, and nothing but CheckpointError from a bad file."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from medvid_core import CheckpointError, MedvidError, OutputSpec, create_model, load_model, save_model
from medvid_core.config import OptimizerConfig
from medvid_core.engine import checkpoint
from medvid_core.engine.session import build_optimizer

OUTPUT = OutputSpec(name="mask", task="segmentation", classes=("background", "lv"))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return create_model("unet", outputs=(OUTPUT,), preset="tiny")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].shape == other[key].shape and bits(one[key]) == bits(other[key])
        for key in one
    )


def test_tensors_come_back_to_the_bit(tmp_path):
    """bfloat16, int64, scalars, empty, NaN payloads, views, and tensors that share their memory."""
    shared = torch.randn(4, 4)
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "half": torch.randn(3).half(),
        "int64": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "shared": shared,
        "tied": shared,
        "view": shared.T,
        "part": shared[1:3, ::2],
        "a/b.c ü": torch.ones(1),
    }
    path = tmp_path / "folder" / "x.safetensors"
    checkpoint.write(path, tensors, {"kind": "test", "text": "ü", "nan": float("nan"), "list": [1, None]})
    found, header = checkpoint.read(path)
    assert same(found, {name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (header["kind"], header["text"], header["list"]) == ("test", "ü", [1, None])
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_files_may_be_read_by_whom_the_user_lets(tmp_path):
    """The umask decides, as for any other file: a colleague in the group can load the model."""
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.ones(1)}, {})
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "madgrad"])
def test_training_state_comes_back_to_the_bit(tmp_path, name):
    """Weights, buffers, moments, step counts, the moving average and the plain values."""

    if name == "madgrad":
        pytest.importorskip("timm", reason="timm has it; core does without")

    def build():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        return model, build_optimizer(OptimizerConfig(name=name, lr=1e-2), model), nn.Sequential(nn.Linear(3, 4))

    def step(model, optimizer):
        torch.manual_seed(1)
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer, average = build()
    for _ in range(3):
        step(model, optimizer)
    path = tmp_path / "last.safetensors"
    checkpoint.save_training(path, model, optimizer, average, {"step": 3, "best": 0.25, "scaler": {"scale": 2.0}})
    other = build()
    assert checkpoint.load_training(path, *other) == {"step": 3, "best": 0.25, "scaler": {"scale": 2.0}}
    assert same(model.state_dict(), other[0].state_dict())
    assert same(average.state_dict(), other[2].state_dict())
    step(model, optimizer)
    step(other[0], other[1])
    assert same(model.state_dict(), other[0].state_dict())


def test_a_model_file_comes_back_as_the_same_function(tmp_path):
    model = tiny()
    save_model(model, tmp_path / "m.safetensors", {"imported": {"file": "x"}})
    again = load_model(tmp_path / "m.safetensors")
    assert same(model.state_dict(), again.state_dict())
    assert json.dumps(again.medvid.to_dict()) == json.dumps(model.medvid.to_dict())
    assert not again.training
    batch = {"video": torch.randn(1, 2, 3, 32, 32)}
    assert torch.equal(model.eval()(batch)["mask"], again(batch)["mask"])


@pytest.mark.parametrize("where", ["save_file", "os.replace", "os.fsync"])
def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch, where):
    """A full disk is a CheckpointError; the former file is whole and nothing is left over."""
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.zeros(3)}, {"step": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"medvid_core.engine.checkpoint.{where}", full)
    with pytest.raises(CheckpointError) as info:
        checkpoint.write(path, {"a": torch.ones(3)}, {"step": 2})
    assert str(info.value) == (
        f"{path} cannot be written: [Errno 28] No space left on device. Make room, or choose another folder."
    )
    monkeypatch.undo()
    assert checkpoint.read(path)[1]["step"] == 1
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    """SIGKILL at any moment of endless writing: what is there can be read."""
    path = tmp_path / "x.safetensors"
    code = (
        "import torch, itertools, pathlib\n"
        "from medvid_core.engine import checkpoint\n"
        "for n in itertools.count():\n"
        f"    checkpoint.write(pathlib.Path({str(path)!r}), {{'a': torch.full((200_000,), float(n))}}, {{'n': n}})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):  # a reader beside the writer
            tensors, header = checkpoint.read(path)
            assert (tensors["a"] == header["n"]).all()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    tensors, header = checkpoint.read(path)
    assert (tensors["a"] == header["n"]).all()


def text_of(call, *arguments) -> str:
    with pytest.raises(CheckpointError) as info:
        call(*arguments)
    return str(info.value)


def test_files_that_are_no_checkpoint(tmp_path):
    """Absent, a folder, empty, torn, foreign, of a later format, of another kind: each its own text."""
    path = tmp_path / "x.safetensors"
    assert text_of(checkpoint.read, path) == f"There is no file {path}."
    assert text_of(checkpoint.read, tmp_path) == f"There is no file {tmp_path}."
    assert text_of(load_model, tmp_path) == (
        f"{tmp_path} holds no model.safetensors: the run has not finished. Go on with --resume {tmp_path}."
    )
    save_model(tiny(), path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:5], whole[:100], whole[:-1], b"\xff" * 64, whole + b"x"):
        path.write_bytes(content)
        assert text_of(checkpoint.read, path).startswith(f"{path} is damaged or not a safetensors file: ")
    save_file({"a": torch.ones(1)}, path)
    foreign = f"{path} has no medvid header. Weights from elsewhere are read with medvid-run import."
    assert text_of(checkpoint.read, path) == foreign
    save_file({"a": torch.ones(1)}, path, metadata={"medvid": "{"})
    assert text_of(checkpoint.read, path) == foreign
    for header in ("[]", "3", "{}", '{"format": 2}'):
        save_file({"a": torch.ones(1)}, path, metadata={"medvid": header})
        assert text_of(checkpoint.read, path) == (
            f"{path} has a format this version does not read. Upgrade medvid-core."
        )
    checkpoint.write(path, {"a": torch.ones(1)}, {"kind": "training", "state": {}})
    assert text_of(load_model, path) == f"{path} is not a model file (its header says 'training')."
    model = tiny()
    save_model(model, path)
    optimizer = torch.optim.Adam(model.parameters())
    assert text_of(checkpoint.load_training, path, model, optimizer, None) == (
        f"{path} is not a training checkpoint; give the run directory to --resume."
    )


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    other = nn.Linear(2, 2)
    checkpoint.save_training(path, other, torch.optim.Adam(other.parameters()), None, {})
    model = tiny()
    text = text_of(checkpoint.load_training, path, model, torch.optim.Adam(model.parameters()), None)
    assert text.startswith(f"{path} does not fit this run's model and optimiser: ")


def test_moments_of_other_parameters_are_refused(tmp_path):
    """PyTorch takes them by number, whatever their shape: an optimiser grouped otherwise would learn from nonsense."""
    path = tmp_path / "x.safetensors"
    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save_training(path, model, optimizer, None, {})
    assert checkpoint.load_training(path, model, optimizer, None) == {}
    turned = torch.optim.Adam([{"params": [model.bias]}, {"params": [model.weight]}])
    text = text_of(checkpoint.load_training, path, model, turned, None)
    assert text.startswith(f"{path} does not fit this run's model and optimiser: exp_avg")
    assert " of shape (3,) for weights (3, 2)" in text or " of shape (3, 2) for weights (3,)" in text


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    model = tiny()
    checkpoint.write(path, {"net.x": torch.ones(1)}, {"kind": "model", "model": model.medvid.to_dict()})
    assert text_of(load_model, path).startswith(f"The weights in {path} do not fit the model they name: ")
    checkpoint.write(path, {}, {"kind": "model", "model": {"name": "unet"}})
    assert text_of(load_model, path).startswith("The model file's description is incomplete or unknown: ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.safetensors"
    save_model(tiny(), path)
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_header_ends_in_words(whole, tmp_path, data):
    """Bytes of the header changed, cut or added: the file loads, or a MedvidError says why it does not."""
    length = 8 + struct.unpack("<Q", whole[:8])[0]
    place = data.draw(st.integers(0, length - 1))
    new = data.draw(st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b"", b"9", b'"', b"null", b"-"])))
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[:place] + new + whole[place + data.draw(st.sampled_from([0, 1, len(new)])) :])
    try:
        checkpoint.read(path)
    except CheckpointError:
        return
    try:
        load_model(path)
    except MedvidError:
        return


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": "mask"},
        {"outputs": [{"name": "mask"}]},
        {"clip": None},
        {"clip": {"fremes": 3}},
        {"size": 3},
        {"config": {"channels": [4]}},
        {"config": {"chanels": [4, 8]}},
        {"config": {"channels": [-4, 8]}},
        {"config": {"channels": [2**40, 8]}},
        {"config": None},
        {"name": None},
        {"name": "medvid-core/absent"},
        {"surprise": 1},
    ],
)
def test_a_description_that_makes_no_sense_ends_in_words(whole, tmp_path, change):
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    tensors, header = checkpoint.read(path)
    header["model"] = {**header["model"], **change}
    checkpoint.write(path, tensors, {key: value for key, value in header.items() if key != "format"})
    with pytest.raises(MedvidError):
        load_model(path)


def test_a_resumed_state_that_makes_no_sense_ends_in_words(tiny_run, medvid, refused, tmp_path):
    """A key of the state lost or unknown: not a traceback."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    path = run / "checkpoints" / "last.safetensors"
    tensors, header = checkpoint.read(path)
    checkpoint.write(path, tensors, {"kind": "training", "state": {**header["state"], "stepp": 3}})
    assert refused("train", "--resume", run).startswith(f"{path} is damaged or of another version: ")
    checkpoint.write(path, tensors, {"kind": "training"})
    assert refused("train", "--resume", run) == f"{path} is damaged: its header holds no state."
    (run / "run.json").write_text("{")
    assert refused("train", "--resume", run).startswith(f"{run / 'run.json'} is damaged: ")
    assert json.loads((tiny_run / "run.json").read_text())["status"] == "done"
