"""Pickled weights from elsewhere: what is read, what is passed over, what is refused."""

import os
import zipfile

import numpy as np
import pytest
import torch

from medvid_core import CheckpointError
from medvid_core.weights import ImportReport, load_strictly, read_state

WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}


def numpy_1(path, target):
    """The same file as NumPy 1 would have pickled it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as written:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            written.writestr(item, data)


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_beside_the_weights_are_passed_over(tmp_path, legacy):
    """EchoNet-Dynamic keeps its losses so: of either version of NumPy, in either format of PyTorch."""
    numbers = {"best_loss": np.float64(30.9), "r2": np.float32(0.8), "epoch": np.int64(44), "done": np.bool_(True)}
    path = tmp_path / "best.pt"
    torch.save({"state_dict": WEIGHTS, **numbers}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match="numpy"):
        torch.load(path, weights_only=True)
    assert_weights(read_state(path))
    if not legacy:
        numpy_1(path, tmp_path / "old.pt")
        assert_weights(read_state(tmp_path / "old.pt"))


def assert_weights(found):
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


def test_the_layout_of_pytorchvideo(tmp_path):
    torch.save({"model_state": WEIGHTS, "epoch": 3}, tmp_path / "SLOW_8x8_R50.pyth")
    assert_weights(read_state(tmp_path / "SLOW_8x8_R50.pyth"))


@pytest.mark.parametrize("extra", [np.zeros(2), np.array("a"), np.zeros(1).view([("a", "f8")])])
def test_arrays_of_numpy_are_refused(tmp_path, extra):
    """Numbers alone are taken; no array is rebuilt."""
    torch.save({"state_dict": WEIGHTS, "extra": extra}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt asks to import numpy.*_reconstruct"):
        read_state(tmp_path / "best.pt")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_runs_code_is_refused_whatever_stands_beside_it(tmp_path, legacy):
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    numbers = {"loss": np.float64(1.0), "r2": Malicious(target)}
    torch.save({"state_dict": WEIGHTS, **numbers}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"system.*nothing was executed"):
        read_state(path)
    assert not target.exists()


def test_a_number_among_the_weights_is_no_weight(tmp_path):
    torch.save({"state_dict": {**WEIGHTS, "scale": np.float64(2.0)}}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state(tmp_path / "best.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_inside_a_tensor_is_found(tmp_path, legacy):
    """By its checksum where the file has any; else what cannot be weights is found as it is loaded."""
    path = tmp_path / "sam.pth"
    torch.save({"weight": torch.ones(400)}, path, _use_new_zipfile_serialization=not legacy)
    data = bytearray(path.read_bytes())
    place = data.index(torch.ones(8).numpy().tobytes()) + 16
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    if not legacy:
        with pytest.raises(CheckpointError, match=r"sam\.pth is damaged: the checksum of .* is wrong"):
            read_state(path)
        return
    model = torch.nn.Linear(400, 1, bias=False)
    state = {"weight": read_state(path)["weight"][None]}
    with pytest.raises(CheckpointError, match=r"damaged: weight holds values that are no numbers \(NaN\)"):
        load_strictly(model, state, source="test", dead={})
    assert not model.weight.isnan().any()


def test_many_keys_are_summed_up_by_module():
    keys = [f"encoder.blocks.{layer}.{part}.weight" for layer in range(12) for part in ("attn", "mlp")]
    text = ImportReport(source="test", initialised=tuple(keys), dropped=(("head.bias", "unused"),)).text()
    assert "left as initialised: encoder.blocks.* (24)" in text
    assert "dropped, unused: head.bias" in text
