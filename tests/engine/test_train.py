"""The training loop against plain PyTorch, and each of its promises."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from medvid_core.config import OptimizerConfig, ScheduleConfig, compose
from medvid_core.engine import checkpoint
from medvid_core.engine.session import build_optimizer
from medvid_core.engine.train import _update_average, average_decay, learning_rate
from medvid_core.errors import ConfigError
from medvid_core.ops import BidirectionalMixer
from medvid_core.plugins import registry

WORDS = ("preset=tiny", "dataset.cases=5", "dataset.frames=5", "dataset.size=[40,40]", "evaluate.overlays=0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The loop is the subject here: no report, no baselines."""
    monkeypatch.setattr("medvid_core.engine.train._finish", lambda session: None)


@pytest.fixture
def trained(medvid, tmp_path):
    """Train; return log lines and tensors of the last checkpoint."""

    def run(*words, name="run"):
        out = tmp_path / name
        medvid("--model", "unet", *WORDS, *words, "--out", out)
        log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return log, checkpoint.read(out / "checkpoints" / "last.safetensors")[0]

    return run


def steps(log, *keys):
    return [tuple(line[key] for key in keys) for line in log if line["kind"] == "train"]


@pytest.mark.parametrize("per_epoch", [1, 3])
def test_learning_rate_is_torchs_cosine(per_epoch):
    """Unit epoch: CosineAnnealingLR stepped once an epoch, as in papers; unit step: once a step."""
    optimizer, schedule = OptimizerConfig(lr=1e-3), ScheduleConfig(final_lr=1e-5, unit="epoch")
    total = 12 * per_epoch

    def torchs(length):
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, length, eta_min=1e-5)
        found = []
        for _ in range(length):
            found.append(cosine.get_last_lr()[0])
            sgd.step()
            cosine.step()
        return found

    by_epoch = [learning_rate(step, total, per_epoch, optimizer, schedule) for step in range(total)]
    assert by_epoch == pytest.approx(np.repeat(torchs(12), per_epoch).tolist(), rel=1e-9)
    schedule = ScheduleConfig(final_lr=1e-5, unit="step")
    by_step = [learning_rate(step, total, per_epoch, optimizer, schedule) for step in range(total)]
    assert by_step == pytest.approx(torchs(total), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (
            ScheduleConfig(name="step", every=4, gamma=0.3),
            lambda sgd: torch.optim.lr_scheduler.StepLR(sgd, 4, 0.3),
        ),
        (
            ScheduleConfig(name="poly", power=7.0, final_lr=0.0, unit="epoch"),
            lambda sgd: torch.optim.lr_scheduler.PolynomialLR(sgd, 12, 7.0),
        ),
    ],
)
def test_other_courses_are_torchs(schedule, torchs):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
    theirs, expected = torchs(sgd), []
    for _ in range(12):
        expected += 3 * theirs.get_last_lr()
        sgd.step()
        theirs.step()
    rates = [learning_rate(step, 36, 3, OptimizerConfig(lr=1e-3), schedule) for step in range(36)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_warm_up_rises_in_a_line_to_the_rate():
    schedule = ScheduleConfig(warmup_steps=4, name="constant")
    rates = [learning_rate(step, 10, 5, OptimizerConfig(lr=1.0), schedule) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    cosine = ScheduleConfig(warmup_steps=4, final_lr=0.0)
    rates = [learning_rate(step, 10, 5, OptimizerConfig(lr=1.0), cosine) for step in range(10)]
    assert max(rates) == rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_warm_up_as_a_fraction_of_all_steps():
    """A tenth of 40 steps is four of them; the cosine has the rest."""
    of_steps, of_all = ScheduleConfig(warmup_steps=4), ScheduleConfig(warmup=0.1)
    for schedule in (of_steps, of_all):
        rates = [learning_rate(step, 40, 5, OptimizerConfig(lr=1.0), schedule) for step in range(40)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[-1] < 0.01
    none = [learning_rate(step, 4, 4, OptimizerConfig(lr=1.0), of_all) for step in range(4)]
    assert none[0] == 1.0  # four steps have no tenth


class Layers(torch.nn.Module):
    """Weights, biases, a norm, and a scan, whose A has two dimensions and shall not decay."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.encoder2 = torch.nn.Linear(4, 4)
        self.mixer = BidirectionalMixer(4, d_state=2)
        self.head = torch.nn.Linear(4, 1).requires_grad_(False)


def settings_of(model, **config) -> dict[str, tuple[float, float]]:
    """Weight decay and factor of the learning rate of each parameter that the optimiser has, by name."""
    optimizer = build_optimizer(OptimizerConfig(**config), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_all_parameters_are_one_group_unless_told_otherwise():
    """In the model's order, so that checkpoints number them as they always did."""
    model = Layers()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    (group,) = build_optimizer(OptimizerConfig(weight_decay=0.3), model).param_groups
    assert [id(parameter) for parameter in group["params"]] == list(map(id, trained))
    assert (group["weight_decay"], group["lr_scale"]) == (0.3, 1.0)


def test_only_weights_decay():
    """Neither biases and norms nor what the scan exempts: A, D and the bias of the step size, in both directions."""
    model = Layers()
    found = settings_of(model, weight_decay=0.3, decay="weights")
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, (decay, _) in found.items() if decay} == {
        "encoder.0.weight",
        "encoder2.weight",
        "mixer.in_proj.weight",
        "mixer.out_proj.weight",
        *(f"mixer.{part}{way}.weight" for part in ("conv1d", "x_proj", "dt_proj") for way in ("", "_b")),
    }
    assert {decay for decay, _ in found.values()} == {0.0, 0.3}
    assert model.mixer.A_log.ndim == 2


def test_factors_of_the_learning_rate_reach_the_parameters_they_name():
    """By module, whole names only, or pattern; of several that fit, the longest counts."""
    found = settings_of(Layers(), lr_scale={"encoder": 0.5, "encoder.1": 0.25, "*.bias": 3.0})
    scales = {name: scale for name, (_, scale) in found.items()}
    assert scales["encoder.0.weight"] == 0.5
    assert scales["encoder.0.bias"] == 0.5
    assert scales["encoder.1.weight"] == scales["encoder.1.bias"] == 0.25
    assert scales["encoder2.weight"] == 1.0
    assert scales["encoder2.bias"] == scales["mixer.dt_proj.bias"] == 3.0
    assert {decay for decay, _ in found.values()} == {0.01}


@pytest.mark.parametrize("pattern", ["enncoder.0", "encoder.9", "head", "coder", "", "*.gamma"])
def test_a_factor_for_nothing_is_refused(pattern):
    """Misspelt, not there, or frozen: the text names it and what there is."""
    with pytest.raises(ConfigError) as info:
        build_optimizer(OptimizerConfig(lr_scale={"encoder": 0.5, pattern: 0.1}), Layers())
    text = str(info.value)
    assert text.startswith(f"optimizer.lr_scale names {pattern!r}, which fits no trained parameter.")
    assert "Their names begin: encoder.0, encoder.1, encoder2.weight, encoder2.bias, mixer.A_log, " in text
    assert ("Did you mean 'encoder.0'?" in text) == (pattern == "enncoder.0")


def plain_loop(words):
    """What the engine promises to do, in plain PyTorch."""
    from medvid_core import create_loss, create_model
    from medvid_core.data.datasets.echo_phantom import index
    from medvid_core.data.loader import TrainingClips, collate
    from medvid_core.data.sampling import ClipKey, epoch_order, steps_per_epoch, training_items
    from medvid_core.data.splits import split_cases
    from medvid_core.engine.train import step_seed

    config = compose(registry(), "unet", None, words).config
    data = index(None, config.dataset.config)
    cases = split_cases(data.cases, config.split)["train"]
    items = training_items(cases, config.clip, data.outputs)
    torch.manual_seed(config.seed)
    model = create_model("unet", outputs=data.outputs, preset="tiny", dropout=config.model.config.dropout)
    clips = TrainingClips(cases, items, config.clip, model.medvid.clip, (), config.augment, config.seed)
    loss = create_loss("dice-ce", data.outputs)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.8)}
    kind = kinds[config.optimizer.name]
    slow = [p for name, p in model.named_parameters() if name.startswith("net.model.1.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("net.model.1.")]
    decay = config.optimizer.weight_decay
    groups = [
        {"params": [p for p in parameters if (p.ndim > 1) == thick], "weight_decay": decay if thick else 0.0}
        for parameters in (rest, slow)
        for thick in (True, False)
    ]
    grouped = bool(config.optimizer.lr_scale)
    optimizer = kind(groups if grouped else model.parameters(), lr=config.optimizer.lr, weight_decay=decay)
    size, micro = config.train.batch_size, config.train.batch_size // config.train.accumulate
    per_epoch = steps_per_epoch(len(items), size)
    model.train()
    losses = []
    for step in range(config.train.max_steps):
        rate = learning_rate(step, config.train.max_steps, per_epoch, config.optimizer, config.schedule)
        for group, factor in zip(optimizer.param_groups, (1, 1, 0.1, 0.1), strict=False):
            group["lr"] = rate * factor
        epoch, row = divmod(step, per_epoch)
        order = epoch_order(config.seed, epoch, len(items), size)[row]
        samples = [clips[ClipKey(epoch, row * size + i, int(item))] for i, item in enumerate(order)]
        batches = [collate(samples[i : i + micro]) for i in range(0, size, micro)]
        counts = {key: sum(loss.counts(batch)[key] for batch in batches).float() for key in loss.counts(batches[0])}
        value = 0.0
        for number, batch in enumerate(batches):
            torch.manual_seed(step_seed(config.seed, step, number, 0))
            parts = [part / counts[key] for key, part in loss(model(batch), batch).items()]
            total = torch.stack(parts).sum()
            total.backward()
            value += total.item()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value)
    return losses, model.state_dict()


@pytest.mark.parametrize(
    "words",
    [
        ("train.max_steps=5", "train.batch_size=2"),
        (
            "train.max_steps=5",
            "train.batch_size=4",
            "train.accumulate=2",
            "model.dropout=0.2",
            "augment.horizontal_flip=0.5",
            "augment.rotation_deg=15",
            "augment.noise=0.02",
            "optimizer.name=adam",
            "optimizer.clip_norm=0.5",
            "schedule.unit=epoch",
        ),
        (
            "train.max_steps=5",
            "train.batch_size=2",
            "optimizer.weight_decay=0.3",
            "optimizer.decay=weights",
            "optimizer.lr_scale={net.model.1: 0.1}",
            "schedule.warmup=0.4",
        ),
        (
            "train.max_steps=5",
            "train.batch_size=2",
            "optimizer.name=sgd",
            "optimizer.momentum=0.8",
            "schedule.name=step",
            "schedule.every=1",
        ),
    ],
)
def test_the_loop_is_plain_pytorch_to_the_bit(trained, words):
    """Same weights, order and seeds: bit-equal weights after n steps, accumulation, clipping and dropout included."""
    log, tensors = trained(*words)
    losses, weights = plain_loop([*WORDS, *words])
    assert [loss for (loss,) in steps(log, "loss")] == pytest.approx(losses, rel=1e-6)
    for name, expected in weights.items():
        assert torch.equal(tensors[f"model/{name}"], expected), name


def test_accumulation_changes_nothing(trained):
    """1, 2 or 4 parts: the same losses and gradients, and weights as close as Adam leaves rounding errors."""
    words = ("train.max_steps=4", "train.batch_size=4", "optimizer.clip_norm=100", "optimizer.lr=1e-3")
    whole, weights = trained(*words, name="1")
    for parts in (2, 4):
        log, tensors = trained(*words, f"train.accumulate={parts}", name=str(parts))
        for one, other in zip(
            steps(whole, "loss", "grad_norm", "lr"), steps(log, "loss", "grad_norm", "lr"), strict=True
        ):
            assert other == pytest.approx(one, rel=1e-5)
        for name, tensor in weights.items():
            # a bias before an instance norm has no gradient but rounding errors, which Adam scales up to its rate
            if name.startswith("model/") and not name.endswith("conv.bias"):
                assert torch.allclose(tensor, tensors[name], atol=1e-6), name


@pytest.mark.slow
def test_loading_workers_change_nothing(trained):
    """0 and 1 loading processes: the same weights to the bit."""
    words = ("train.max_steps=3", "augment.noise=0.1")
    _, alone = trained(*words, "train.workers=0", name="0")
    _, other = trained(*words, "train.workers=1", name="1")
    assert all(torch.equal(alone[name], other[name]) for name in alone)


def test_the_seed_changes_the_run(trained):
    first, _ = trained("train.max_steps=2", "seed=1", name="1")
    again, _ = trained("train.max_steps=2", "seed=1", name="again")
    other, _ = trained("train.max_steps=2", "seed=2", name="2")
    assert steps(first, "loss") == steps(again, "loss") != steps(other, "loss")


def test_moving_average():
    """Parameters follow by ``1 - decay``, buffers are copied."""
    torch.manual_seed(0)
    average, network = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    torch.nn.init.normal_(network.weight)
    network.running_mean += 5
    before = average.weight.detach().clone()
    _update_average(average, network, 0.9)
    assert torch.allclose(average.weight, 0.9 * before + 0.1 * network.weight)
    assert torch.equal(average.running_mean, network.running_mean)


def test_the_moving_average_soon_forgets_the_random_start():
    """Of ten thousand steps as of ten, no more than a few per cent of it are left."""
    for steps in (10, 100, 10_000):
        kept = math.prod(average_decay(0.999, step) for step in range(steps))
        assert kept < 0.05
    assert average_decay(0.999, 1_000_000) == 0.999


def test_the_moving_average_is_what_is_evaluated_and_kept(trained, tmp_path):
    _, tensors = trained("train.max_steps=3", "train.ema=0.5", "train.evaluate_every=100")
    best, _ = checkpoint.read(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert all(torch.equal(tensors[f"average/{name}"], tensor) for name, tensor in best.items())
    assert not all(torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in best.items())


def test_early_stopping(trained, capsys):
    """No improvement for ``patience`` evaluations after the first: the run ends there."""
    log, _ = trained("optimizer.lr=1e-20", "optimizer.weight_decay=0", "train.epochs=9", "train.patience=2")
    assert [line["epoch"] for line in log if line["kind"] == "train"][-1] == 2
    assert len([line for line in log if line["kind"] == "evaluation"]) == 3
    assert "Early stop: 2 evaluations without improvement." in capsys.readouterr().err


def test_a_metric_for_which_less_is_better_chooses_the_least(trained, tmp_path):
    log, _ = trained("metrics=[mae,dice]", "optimizer.lr=3e-3", "train.epochs=4")
    values = {line["step"]: line["mae"] for line in log if line["kind"] == "evaluation"}
    _, header = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert header["state"]["best"] == min(values.values())
    assert header["state"]["best_step"] == min(values, key=values.get)


def test_a_loss_that_is_no_number_stops_the_run_with_advice(medvid, refused, tmp_path):
    """Step, case, where the last good state is, and what to try."""
    out = tmp_path / "run"
    text = refused("--model", "unet", *WORDS, "train.max_steps=50", "optimizer.lr=1e30", "--out", out)
    head, _, rest = text.partition(" (cases echo-")
    step = int(head.rpartition(" ")[2])
    assert head in (f"The loss is nan at step {step}", f"The loss is inf at step {step}")
    assert rest.endswith(
        f"). The last good state is in {out / 'checkpoints'}. Lower optimizer.lr, set optimizer.clip_norm=1, or train "
        "in float32 (train.precision=no)."
    )
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


def test_clip_norm_logs_the_norm_before_clipping(trained):
    log, _ = trained("train.max_steps=2", "optimizer.clip_norm=1e-3")
    assert all(norm > 1e-3 and math.isfinite(norm) for (norm,) in steps(log, "grad_norm"))


def test_bfloat16_trains(trained):
    log, tensors = trained("train.max_steps=2", "train.precision=bf16")
    assert all(math.isfinite(loss) for (loss,) in steps(log, "loss"))
    full, _ = trained("train.max_steps=2", name="after")  # in the same process, as in a notebook
    assert steps(full, "loss") != steps(log, "loss")
    assert steps(full, "loss")[0] == pytest.approx(steps(log, "loss")[0], rel=0.02)
    assert all(tensor.dtype == torch.float32 for name, tensor in tensors.items() if name.startswith("model/"))


def test_starting_from_weights(trained, medvid, tmp_path, refused):
    """--weights FILE: the first loss is that of the given weights."""
    trained("train.max_steps=4", "optimizer.lr=1e-2", name="first")
    best = tmp_path / "first" / "checkpoints" / "best.safetensors"
    plain, _ = trained("train.max_steps=1", name="plain")
    warm, _ = trained("train.max_steps=1", "--weights", best, name="warm")
    assert steps(warm, "loss") < steps(plain, "loss")
    text = refused("--model", "unet", *WORDS, "model.channels=[4,4]", "--weights", best, "--out", tmp_path / "x")
    assert text.startswith(f"The weights in {best} do not fit this model: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which fp16 is right")
def test_fp16_without_a_gpu_is_refused(refused, tmp_path):
    text = refused("--model", "unet", "preset=tiny", "train.precision=fp16", "--out", tmp_path / "run")
    assert text == "train.precision=fp16 needs a GPU. On a CPU use bf16, or no for float32."


def test_what_is_refused_leaves_no_run_behind(medvid, refused, tmp_path):
    words = ("--model", "unet", "preset=tiny", "train.max_steps=1", "dataset.cases=4", "--out", tmp_path / "run")
    assert "train.batch_size=2 cannot be divided" in refused(*words, "train.accumulate=4")
    assert not (tmp_path / "run").exists()


def test_weights_survive_a_kill_before_the_first_checkpoint(medvid, trained, tmp_path, monkeypatch):
    """The start is on disk at once, so that a resumed run begins with the same weights."""
    trained("train.max_steps=2", name="first")
    words = ("train.max_steps=1", "--weights", tmp_path / "first" / "checkpoints" / "best.safetensors")
    whole, _ = trained(*words, name="whole")

    def killed(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("medvid_core.engine.train._loop", killed)
        with pytest.raises((OSError, SystemExit)):
            medvid("--model", "unet", *WORDS, *words, "--out", tmp_path / "begun")
    medvid("train", "--resume", tmp_path / "begun")
    log = [json.loads(line) for line in (tmp_path / "begun" / "metrics.jsonl").read_text().splitlines()]
    assert steps(log, "loss") == steps(whole, "loss")


def test_the_constant_baseline_is_the_best_constant_region():
    """The threshold maximises expected Dice, also where a moving target covers no pixel half of the time."""
    from medvid_core.engine.baselines import best_threshold

    frequency = torch.zeros(10, 10)
    frequency[4:6, 2:8] = 0.4  # a target that wanders
    frequency[0, 0] = 0.01
    assert best_threshold(frequency) == pytest.approx(0.4)
