"""Weights of the original: files as its scripts write them, strict, and nothing executed."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medvid_core.errors import CheckpointError
from medvid_core.specs import OutputSpec
from medvid_core.weights import ImportReport, read_state
from medvid_vivim.config import VivimConfig
from medvid_vivim.importer import import_segformer, import_upstream
from medvid_vivim.network import build


def vivim(classes=1, seed=0, **config):
    torch.manual_seed(seed)
    small = {"depths": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "heads": (1, 1, 2, 2), "decoder_width": 8}
    names = tuple(f"class {k}" for k in range(classes))
    return build(VivimConfig(**small, **config), (OutputSpec(name="mask", task="segmentation", classes=names),))


def upstream_state(model, prefix=""):
    """The state dict the original would save: ours and what it never uses."""
    state = dict(model.state_dict())
    for stage, width in enumerate((4, 4, 8, 8)):
        for name in ("weight", "bias"):
            state[f"encoder.downsample_layers.layer_norm.{stage}.{name}"] = torch.ones(width)
    state["decoder.classifier.weight"] = torch.ones(150, 8, 1, 1)
    state["decoder.classifier.bias"] = torch.ones(150)
    return {prefix + key: value for key, value in state.items()}


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_state_dict_files(tmp_path, suffix):
    theirs, ours = vivim(seed=1), vivim(seed=2)
    path = tmp_path / f"vivim{suffix}"
    state = upstream_state(theirs)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = import_upstream(read_state(path), ours)
    assert same(ours, theirs)
    assert len(report.loaded) == len(ours.state_dict())
    assert {key for key, _ in report.dropped} == {k for k in state if "classifier" in k or "layers.layer_norm" in k}
    assert "SegFormer's own classifier" in report.text()
    assert (report.missing, report.unexpected, report.initialised) == ((), (), ())


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_unwraps_containers(tmp_path, container):
    torch.save({"epoch": 3, container: upstream_state(vivim())}, tmp_path / "x.pth")
    assert "out.weight" in read_state(tmp_path / "x.pth")


def lightning_file(path, model):
    """As the ovarian fork's training script leaves it: Lightning, options in an argparse.Namespace."""
    state = upstream_state(model, prefix="model.")
    state["criterion.inverse_distance.inversenet.fc.0.weight"] = torch.ones(3, 3)
    options = argparse.Namespace(image_size=256, clip_length=5, exp_name="a.model.b")
    torch.save(
        {
            "epoch": 7,
            "global_step": 100,
            "pytorch-lightning_version": "2.1.0",
            "state_dict": state,
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
            "hparams_name": "kwargs",
            "hyper_parameters": {"opt": options},
        },
        path,
    )


def test_lightning_checkpoint_with_namespace(tmp_path):
    theirs, ours = vivim(3, seed=1, edge=True), vivim(3, seed=2, edge=True)
    lightning_file(tmp_path / "last.ckpt", theirs)
    report = import_upstream(read_state(tmp_path / "last.ckpt"), ours)
    assert same(ours, theirs)
    assert ("criterion.inverse_distance.inversenet.fc.0.weight", "part of the training loss, not of the network") in (
        report.dropped
    )


def test_namespace_is_allowed_in_lightning_checkpoints_only(tmp_path):
    lightning_file(tmp_path / "last.pth", vivim())
    with pytest.raises(CheckpointError, match=r"asks to import argparse\.Namespace"):
        read_state(tmp_path / "last.pth")
    assert read_state(tmp_path / "last.pth", allowed=[argparse.Namespace])


def test_only_the_leading_prefix_is_stripped():
    ours = vivim()
    with pytest.raises(CheckpointError, match=r"no place in the model: encoder\.model\.extra"):
        import_upstream({**upstream_state(ours, "model."), "model.encoder.model.extra": torch.ones(1)}, ours)
    with pytest.raises(CheckpointError, match=r"with and without the prefix 'model\.'"):
        import_upstream(upstream_state(ours) | upstream_state(ours, "model."), ours)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_file_is_refused_and_not_executed(tmp_path, suffix, legacy):
    target, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    state = {"state_dict": upstream_state(vivim()), "hyper_parameters": Malicious(target)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as error:
        read_state(path)
    assert not target.exists()
    assert str(path) in str(error.value)
    assert "system" in str(error.value)
    assert "nothing was executed" in str(error.value)
    assert "safetensors" in str(error.value)


def test_bare_malicious_pickle(tmp_path):
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(CheckpointError, match=r"nothing was executed|cannot be read"):
        read_state(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("absent.pth", None, "does not exist"),
        ("x.onnx", b"", "is not a weights file medvid reads"),
        ("x.pth", b"no weights at all", "x.pth"),
        ("x.pth", b"PK\x03\x04 broken archive", "cannot be read as PyTorch weights"),
        ("x.safetensors", b"\x00" * 20, "cannot be read as safetensors"),
    ],
)
def test_unreadable_files(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_state(tmp_path / name)
    assert text in str(error.value)
    assert name in str(error.value)


def test_truncated_file(tmp_path):
    torch.save(upstream_state(vivim()), tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"x\.pth cannot be read as PyTorch weights"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [torch.ones(3), {"lr": 0.1}, {}])
def test_file_without_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state(tmp_path / "x.pth")


def test_strictness_lists_everything_and_changes_nothing():
    theirs, ours = vivim(3, seed=1, edge=True), vivim(1, seed=2)
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    state = upstream_state(theirs)
    del state["decoder.linear_fuse.weight"]
    with pytest.raises(CheckpointError) as error:
        import_upstream(state, ours)
    text = str(error.value)
    assert "missing from the file: decoder.linear_fuse.weight" in text
    assert "no place in the model: edgeocr_cls_head.weight, edgeocr_cls_head.bias" in text
    assert "out.weight: shape (3, 8, 1, 1) in the file, (1, 8, 1, 1) in the model" in text
    assert "model.edge=true" in text
    assert all(torch.equal(before[name], x) for name, x in ours.state_dict().items())


def segformer_state(model, decoder=True):
    renamed = {}
    for key, value in upstream_state(model).items():
        if key.startswith("encoder.downsample_layers."):
            renamed[key.replace("encoder.downsample_layers.", "segformer.encoder.")] = value
        elif key.startswith("decoder.") and decoder:
            renamed[key.replace("decoder.", "decode_head.")] = value
    return renamed


def test_segformer(tmp_path):
    theirs, ours = vivim(seed=1), vivim(3, seed=2, edge=True)
    start = {name: x.clone() for name, x in ours.state_dict().items()}
    torch.save(segformer_state(theirs), tmp_path / "pytorch_model.bin")
    report = import_segformer(read_state(tmp_path / "pytorch_model.bin"), ours)
    for name, x in ours.state_dict().items():
        from_file = name.startswith(("encoder.downsample_layers.", "decoder."))
        assert torch.equal(x, theirs.state_dict()[name] if from_file else start[name]), name
        assert (name in report.loaded) is from_file
        assert (name in report.initialised) is not from_file
    assert "left as initialised: encoder.stages.*" in report.text()


def test_segformer_encoder_alone():
    ours = vivim(seed=2)
    state = segformer_state(vivim(seed=1), decoder=False)
    report = import_segformer({**state, "classifier.weight": torch.ones(1000, 8)}, ours)
    assert "decoder.linear_fuse.weight" in report.initialised
    assert ("classifier.weight", "SegFormer's image classifier") in report.dropped
    del state["segformer.encoder.patch_embeddings.0.proj.bias"]
    with pytest.raises(CheckpointError, match=r"missing from the file: encoder\.downsample_layers\.patch_embeddings"):
        import_segformer(state, ours)


def test_empty_report_reads_well():
    assert ImportReport(source="test").text() == "test: 0 entries loaded, 0 keys of the file dropped."
