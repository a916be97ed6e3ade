"""The command on this machine as it is, with a backend made wrong in every way, and with one absent."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from medvid_core.ops import backends, conv, doctor, scan

CASES, SPEED = doctor.CASES, doctor._speed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Plain backends, small cases, no timing: the command is the subject here, the backends have tests of their own."""
    monkeypatch.setattr(doctor, "CASES", doctor.CASES[:2])
    monkeypatch.setattr(doctor, "_speed", lambda backend, device: 1.25)
    monkeypatch.setattr(doctor, "devices", lambda: {"cpu": "a processor"})
    known = {"cpu": "numba is not installed", "triton": "there is no GPU", "mamba_ssm": "it is not installed"}
    monkeypatch.setattr(doctor, "absence", known.get)
    monkeypatch.setattr(backends, "absence", known.get)


@pytest.fixture
def examined(medvid, capsys):
    """Run the command; return its exit code and what it printed."""

    def run(*words) -> tuple[int, str]:
        code = 0
        try:
            medvid("doctor", *words)
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    return run


def break_torch(monkeypatch, spoil):
    """Let backend ``torch`` return what ``spoil`` makes of y."""

    def wrong(*inputs):
        y, last = scan.reference_scan(*inputs)
        return spoil(y), last

    monkeypatch.setitem(scan.RECURRENCES, "torch", wrong)


def line(text: str, *words: str) -> str:
    """The one line of a text that begins with these words."""
    (found,) = [one for one in text.splitlines() if one.split()[: len(words)] == [*words]]
    return found


def test_right_backends_agree(examined):
    code, text = examined()
    assert code == 0
    for name in ("reference", "torch"):
        assert "agrees" in line(text, name, "cpu")
        assert line(text, name, "cpu").endswith("1.2 ×  ")
    assert f"torch {torch.__version__.partition('+')[0]}" in text.splitlines()[0]
    assert text.splitlines()[0].endswith(f"; {torch.get_num_threads()} threads")
    assert line(text, "cpu", "a", "processor")
    assert line(text, "auto", "cpu:") == (
        "auto     cpu: torch, first choice for cpu tensors; not cpu: numba is not installed"
    )


def test_an_absent_backend_says_why_and_how_to_install_it(examined):
    _, text = examined()
    assert line(text, "absent", "mamba_ssm:") == "absent   mamba_ssm: it is not installed"
    assert line(text, "install", "mamba_ssm:") == 'install  mamba_ssm: pip install "medvid-core[mamba-ssm]"'
    assert line(text, "absent", "triton:") == "absent   triton: there is no GPU"
    assert "install  triton" not in text  # installing it would not help


def test_json_holds_the_same(examined):
    code, text = examined("--json")
    found = json.loads(text)
    assert (code, found["ok"]) == (0, True)
    assert found["versions"].keys() >= {"python", "torch", "numba", "triton", "mamba-ssm"}
    assert found["threads"] == torch.get_num_threads()
    (device,) = found["devices"]
    assert (device["device"], device["name"], device["auto"]["backend"]) == ("cpu", "a processor", "torch")
    listed = {backend["name"]: backend for backend in found["backends"]}
    assert [*listed] == [*backends.BACKENDS]
    (check,) = listed["torch"]["checks"]
    assert (check["ok"], check["problem"], check["speed_relative_to_torch"]) == (True, None, 1.25)
    assert check["errors"].keys() == {"float32", "bfloat16", "float16"}
    assert all(0 < error["worst"] < error["limit"] for error in check["errors"].values())
    assert listed["mamba_ssm"] == {
        "name": "mamba_ssm",
        "summary": "the CUDA kernel of mamba-ssm",
        "present": False,
        "absence": "it is not installed",
        "install": 'pip install "medvid-core[mamba-ssm]"',
        "checks": [],
    }


class WrongGradient(torch.autograd.Function):
    """The identity, but for a gradient that is one percent too small."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.99


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda y: y * 1.0001, "relative error 1."),
        (WrongGradient.apply, "in the gradient of "),
        (lambda y: y * float("nan"), "relative error inf in "),
        (lambda y: y + (y.shape[-1] == 63) * y.detach().roll(1, -1), "in y at length 63"),
    ],
)
def test_a_backend_that_disagrees_is_named(examined, monkeypatch, spoil, where):
    break_torch(monkeypatch, spoil)
    code, text = examined()
    assert code == 1
    assert "WRONG" in line(text, "torch", "cpu")
    assert "agrees" in line(text, "reference", "cpu")
    said = line(text, "wrong", "torch")
    assert said.startswith("wrong    torch on cpu: float32: relative error ")
    assert where in said
    assert "the limit is 2e-05" in said
    code, text = examined("--json")
    assert (code, json.loads(text)["ok"]) == (1, False)


def test_a_backend_that_fails_is_named_with_its_error_in_a_line(examined, monkeypatch):
    def fail(y):
        raise RuntimeError("no kernel\n  image")

    break_torch(monkeypatch, fail)
    code, text = examined()
    assert code == 1
    assert line(text, "wrong", "torch") == "wrong    torch on cpu: RuntimeError: no kernel image"


def test_every_case_and_the_timing(monkeypatch):
    monkeypatch.setattr(doctor, "CASES", CASES)
    monkeypatch.setattr(doctor, "_speed", SPEED)
    found = doctor.check("torch", "cpu")
    assert (found.problem, found.speed) == ("", 1.0)
    assert all(agreement.error < agreement.limit / 2 for agreement in found.agreements.values())


def test_a_wrong_convolution_is_found(examined, monkeypatch):
    """A compiled backend brings the convolution in front of the scan too."""

    def forward(x, weight, bias, order, y):
        y.zero_()

    def backward(grad_y, x, weight, bias, order, *grads):
        for grad in grads:
            grad.zero_()

    monkeypatch.setitem(sys.modules, "zeros", SimpleNamespace(forward=forward, backward=backward))
    monkeypatch.setattr(conv, "MODULES", {"torch": "zeros"})
    code, text = examined()
    assert code == 1
    assert "relative error 1.0e+00 in y of the convolution at length " in line(text, "wrong", "torch")


def test_mamba_ssm_is_compared_without_what_it_cannot_do(monkeypatch):
    """It takes no initial state, and passes no gradient through the last one."""

    def like_mamba_ssm(given):
        assert given.initial_state is None
        y, last = scan._by_recurrence(scan.reference_scan, given)
        return y, last.detach()

    monkeypatch.setattr(doctor, "CASES", CASES)
    monkeypatch.setattr(scan, "choose_backend", lambda name, *_: backends.Choice(name, ""))
    monkeypatch.setattr(scan, "_by_mamba_ssm", like_mamba_ssm)
    for dtype in doctor.LIMITS:
        found = doctor._agreement("mamba_ssm", "cpu", dtype)
        assert found.ok, found


def test_pairs_are_the_present_backends_with_the_devices_they_fit():
    assert doctor.pairs() == [("reference", "cpu"), ("torch", "cpu")]


def test_a_wrong_depthwise_convolution_is_found(monkeypatch):
    """It is a kernel of backend ``cpu`` like the scan."""
    monkeypatch.setattr(backends, "absence", {}.get)  # numba is there after all
    right = doctor.depthwise_conv
    monkeypatch.setattr(
        doctor,
        "depthwise_conv",
        lambda x, weight, bias: right(x, weight, bias) * (1 + 1e-3 * (x.dtype == torch.float32)),
    )
    found = doctor.check("cpu", "cpu")
    assert "depth-wise convolution" in found.problem
