"""The configuration: who wins, where each value came from, and what is refused with which words."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from medvid_core.builtin import medvid_datasets, medvid_losses, medvid_metrics, medvid_models
from medvid_core.config import AugmentConfig, compose, flatten, parse_overrides, read_config_file
from medvid_core.errors import ConfigError, PluginError
from medvid_core.plugins import Provided, Registry, load_registry, registry
from medvid_core.specs import DatasetSpec, LossSpec, MetricSpec, ModelSpec


def refusal(*overrides, model="unet", data=None, file=None, error=ConfigError) -> str:
    with pytest.raises(error) as info:
        compose(registry(), model, data, overrides, file)
    return str(info.value)


def composed(*overrides, model="unet", data=None, file=None):
    return compose(registry(), model, data, overrides, file)


@pytest.fixture
def layered() -> Registry:
    """Core's components, and a model and a data set whose settings overlap."""
    loaded = load_registry([])
    for kind, specs in (
        ("dataset", medvid_datasets()),
        ("loss", medvid_losses()),
        ("metric", medvid_metrics()),
        ("model", medvid_models()),
    ):
        loaded.provided[kind] += [Provided("core", "1", spec) for spec in specs]
    settings = {"train.epochs": 11, "train.batch_size": 11, "train.accumulate": 1, "optimizer.lr": 0.11, "seed": 11}
    loaded.provided["model"].append(
        Provided(
            "other",
            "1",
            ModelSpec(
                name="layered",
                tasks=("segmentation",),
                build="unused:unused",
                config="medvid_core.networks.config:UNetConfig",
                recipe={**settings, "clip.sampling": "dense", "loss": "dice", "loss.smooth": 0.5},
                presets={"small": {"train.batch_size": 22, "train.ema": 0.22, "clip.frames": 22}, "full": {}},
            ),
        )
    )
    loaded.provided["dataset"].append(
        Provided(
            "other",
            "1",
            DatasetSpec(
                name="suggesting",
                tasks=("segmentation",),
                index="unused:unused",
                config="medvid_core.data.phantoms.echo:EchoPhantomConfig",
                defaults={"train.epochs": 33, "train.batch_size": 33, "clip.frames": 33, "clip.stride": 33},
            ),
        )
    )
    return loaded


def test_later_layers_win_and_each_value_knows_its_origin(layered, tmp_path):
    """core < clip and recipe of the model < preset < data set < the preset's size of clips < file < command line."""
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer: {lr: 0.44}\naugment: {noise: 0.44}\npreset: small\n")
    overrides = ["augment.noise=0.55"]
    result = compose(layered, "layered", "suggesting", overrides, file)
    config, origins = result.config, result.origins
    assert (config.train.patience, origins["train.patience"]) == (0, "default")
    assert (config.clip.size, origins["clip.size"]) == ((256, 256), "model layered")
    assert (config.clip.sampling, origins["clip.sampling"]) == ("dense", "recipe of layered")
    assert (config.train.ema, origins["train.ema"]) == (0.22, "preset small")
    assert (config.train.epochs, origins["train.epochs"]) == (33, "data set suggesting")
    assert (config.train.batch_size, origins["train.batch_size"]) == (33, "data set suggesting")
    assert (config.clip.stride, origins["clip.stride"]) == (33, "data set suggesting")
    assert (config.clip.frames, origins["clip.frames"]) == (22, "preset small")
    assert (config.optimizer.lr, origins["optimizer.lr"]) == (0.44, str(file))
    assert (config.augment.noise, origins["augment.noise"]) == (0.55, "command line")
    assert origins["preset"] == str(file)
    assert origins["model.name"] == "--model"
    assert origins["dataset.name"] == "--data"
    assert set(origins) == set(flatten(config.to_dict()))


@pytest.mark.parametrize(("preset", "size"), [("tiny", (4, (32, 32))), ("full", (32, (112, 112)))])
def test_a_preset_keeps_its_clips_whatever_the_data_set_suggests(tmp_path, preset, size):
    """EchoNet-Dynamic suggests 32 frames of 112: not to who asks for tiny; all else it suggests holds."""
    (tmp_path / "FileList.csv").touch()
    (tmp_path / "Videos").mkdir()
    config = composed(f"preset={preset}", model="cnn-mamba", data=str(tmp_path)).config
    assert config.dataset.name == "echonet-dynamic"
    assert (config.clip.frames, config.clip.size) == size
    assert (config.clip.stride, config.clip.padding, config.augment.pad) == (2, "zero", 12)
    mine = composed(f"preset={preset}", "clip.frames=7", model="cnn-mamba", data=str(tmp_path)).config
    assert (mine.clip.frames, mine.clip.size) == (7, size[1])


def test_factors_of_the_learning_rate_are_one_setting(tmp_path):
    """Names hold dots, and are no keys: the mapping is set as a whole, shown as it is typed, and read back."""
    word = 'optimizer.lr_scale={frames.encoder: 0.5, "*.bias": 2}'
    result = composed(word)
    assert result.config.optimizer.lr_scale == {"frames.encoder": 0.5, "*.bias": 2.0}
    assert result.origins["optimizer.lr_scale"] == "command line"
    line = next(line for line in result.explain().splitlines() if "lr_scale" in line).partition("#")[0].strip()
    assert line == 'optimizer.lr_scale={"frames.encoder": 0.5, "*.bias": 2.0}'
    assert composed(line).config == result.config
    file = tmp_path / "config.yaml"
    file.write_text(result.config.to_yaml())
    assert composed(file=file).config == result.config
    other = composed("optimizer={lr: 1e-3, lr_scale: {heads: 3}}", file=file).config.optimizer
    assert (other.lr, other.lr_scale) == (1e-3, {"heads": 3.0})
    assert composed("optimizer.lr_scale={}", file=file).config.optimizer.lr_scale == {}
    assert "Did you mean 'optimizer.lr_scale'?" in refusal("optimizer.lr_scale.heads=3")


def test_two_lengths_of_the_warm_up_are_refused():
    assert refusal("schedule.warmup=0.1", "schedule.warmup_steps=5") == (
        "schedule.warmup=0.1 and schedule.warmup_steps=5 both say how long the rate rises. Set one of them to 0."
    )


def test_loss_settings_of_the_recipe_belong_to_the_loss_of_the_recipe(layered):
    """Another loss starts from its own defaults."""
    own = compose(layered, "layered", "suggesting").config.loss
    assert (own.name, own.config.smooth) == ("dice", 0.5)
    other = compose(layered, "layered", "suggesting", ["loss=dice-ce"])
    assert (other.config.loss.name, other.config.loss.config.smooth) == ("dice-ce", 1.0)
    assert (other.origins["loss.name"], other.origins["loss.smooth"]) == ("command line", "default")
    mine = compose(layered, "layered", "suggesting", ["loss=dice-ce", "loss.smooth=2"]).config.loss
    assert mine.config.smooth == 2.0
    same = compose(layered, "layered", "suggesting", ["loss=dice"]).config.loss
    assert same.config.smooth == 0.5


def test_loss_equals_loss_name():
    """``loss=dice`` is short for ``loss.name=dice``; names ignore case and ``_``."""
    assert composed("loss=dice").config.loss == composed("loss.name=dice").config.loss
    assert composed("loss=Dice_CE").config.loss.name == "dice-ce"


def test_print_config_shows_every_value_with_its_origin(medvid, capsys):
    """One line a value, no header, nothing on stderr; what is shown can be typed back."""
    medvid("--model", "unet", "optimizer.lr=1e-4", "--print-config")
    out, err = capsys.readouterr()
    assert err == ""
    lines = dict(line.split("#") for line in out.splitlines())
    shown = {key.strip(): origin.strip() for key, origin in lines.items()}
    assert shown["optimizer.lr=0.0001"] == "command line"
    assert shown["clip.frames=4"] == "preset small"
    assert shown["loss.name=dice-ce"] == "recipe of unet"
    assert shown["preset=small"] == "default"
    assert shown["train.max_steps=null"] == "default"
    assert len(shown) == len(composed().origins)
    back = [key for key in shown if not key.startswith("dataset.root")]
    assert compose(registry(), None, None, back).config == composed("optimizer.lr=1e-4").config


def test_without_data_the_phantom_runs_small_and_with_data_full(vtus):
    """Neither --data nor preset: echo-phantom, preset small. Any data named: preset full."""
    assert (composed().config.dataset.name, composed().config.preset) == ("echo-phantom", "small")
    assert composed().origins["preset"] == "default"
    assert composed(data="echo-phantom").config.preset == "full"
    assert composed("dataset=echo-phantom").config.preset == "full"
    assert composed(data=str(vtus())).config.preset == "full"
    assert composed("preset=tiny").config.preset == "tiny"


def test_data_sets_are_recognised_by_their_layout(vtus, tmp_path, monkeypatch):
    """--data PATH finds its adapter; the path is stored absolute; a name wins where no such path exists."""
    root = vtus()
    result = composed(data=str(root))
    assert (result.config.dataset.name, result.config.data_root) == ("vtus", str(root.resolve()))
    monkeypatch.chdir(tmp_path)
    assert composed(data="vtus").config.data_root == str(root.resolve())  # a folder of that name is here
    assert composed(f"dataset.root={root}").config.dataset.name == "vtus"
    assert composed("dataset=vtus", data=str(root)).config.dataset.name == "vtus"


def test_data_that_cannot_be_used_is_refused_with_what_can(tmp_path):
    """Missing, empty, unknown layout, empty word: each its own text."""
    names = ", ".join(spec.name for spec in registry().specs(DatasetSpec))
    readable = ", ".join(spec.name for spec in registry().specs(DatasetSpec) if spec.can_read)
    absent = tmp_path / "absent"
    assert refusal(data=str(absent)) == (
        f"--data {absent}: there is no such folder or file, and no data set of that name. Data sets by name: {names}."
    )
    assert "Did you mean 'echo-phantom'?" in refusal(data="echo-phanton")
    (tmp_path / "empty").mkdir()
    assert refusal(data=str(tmp_path / "empty")) == (
        f"--data {tmp_path / 'empty'} cannot be used. The folder is empty. Layouts that are read: {readable} "
        "(medvid-run plugins list describes them)."
    )
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.docx").write_bytes(b"")
    assert "No data set knows its layout." in refusal(data=str(tmp_path / "odd"))
    (tmp_path / "odd" / "labels.csv").write_text("FileName;class\na.avi;1\n")
    assert refusal(data=str(tmp_path / "odd")).splitlines()[1:] == [
        f"If labels.csv in it lists the clips, call it manifest.csv or give --data {tmp_path / 'odd' / 'labels.csv'}. "
        "It needs a column file, and mask, label, frame_labels, anomaly or numbers (dataset.targets); it has FileName, "
        "class."
    ]
    for content in (b"site;colour\n", b"", b"\xff\xfe"):  # of other things, empty, no table
        (tmp_path / "odd" / "labels.csv").write_bytes(content)
        assert len(refusal(data=str(tmp_path / "odd")).splitlines()) == 1
    for name in ("labels.csv", "more.CSV"):  # which of the two?
        (tmp_path / "odd" / name).write_text("file,label\n")
    assert len(refusal(data=str(tmp_path / "odd")).splitlines()) == 1
    for empty in ("", " "):
        assert refusal(data=empty) == (
            "--data is empty. Name a data set, or a folder or file of your own; or leave it out."
        )


def test_a_folder_two_data_sets_can_read_is_not_guessed_at(layered, vtus):
    """The text names both and what to type."""
    root = vtus()
    vtus_spec = next(spec for spec in layered.specs(DatasetSpec) if spec.name == "vtus")
    import dataclasses

    layered.provided["dataset"].append(Provided("other", "1", dataclasses.replace(vtus_spec, name="twin")))
    with pytest.raises(ConfigError) as info:
        compose(layered, "unet", str(root))
    assert str(info.value) == f"--data {root} can be read as vtus, twin. Say which: dataset=vtus."
    assert compose(layered, "unet", str(root), ["dataset=twin"]).config.dataset.name == "twin"


def test_unknown_keys_are_refused_with_the_close_one(tmp_path):
    """Wherever they stand."""
    text = refusal("optimizer.lrr=1")
    assert text == (
        "Unknown key 'optimizer.lrr' (value 1, command line). Did you mean 'optimizer.lr'? Known here: "
        "optimizer.betas, optimizer.clip_norm, optimizer.decay, optimizer.lr, optimizer.lr_scale, optimizer.momentum, "
        "optimizer.name, optimizer.weight_decay."
    )
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  epoch: 3\n")
    text = refusal(file=file)
    assert text.startswith(f"Unknown key 'train.epoch' (value 3, {file}). Did you mean 'train.epochs'? Known here: ")
    assert refusal("lr=1").endswith(
        "Known here: augment, cache, clip, dataset, evaluate, loss, metrics, model, optimizer, outputs, preprocess, "
        "preset, schedule, seed, split, train."
    )
    assert "Unknown key 'loss.class_weights'" in refusal("loss=dice", "loss.class_weights=[1]")
    assert "Unknown key 'dataset.caeses' (value 3, command line). Did you mean 'dataset.cases'?" in refusal(
        "dataset.caeses=3"
    )


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("clip.frames=many", "clip.frames='many' (command line) cannot be used: "),
        ("clip.frames=3.5", "clip.frames=3.5 (command line) cannot be used: "),
        ("clip.frames=true", "clip.frames=True (command line) cannot be used: "),
        ("clip.frames=null", "clip.frames=None (command line) cannot be used: "),
        ("clip.size=96", "clip.size=96 (command line) cannot be used: "),
        ("clip.size=[96]", "clip.size=[96] (command line) cannot be used: "),
        ("clip.size=[96,96,3]", "clip.size=[96, 96, 3] (command line) cannot be used: "),
        ("optimizer.lr=[1]", "optimizer.lr=[1] (command line) cannot be used: "),
        ("optimizer.lr=???", "optimizer.lr='???' (command line) cannot be used: write the value itself."),
        ("optimizer.lr_scale=3", "optimizer.lr_scale=3 (command line) cannot be used: "),
        ("optimizer.lr_scale={a: x}", "optimizer.lr_scale={'a': 'x'} (command line) cannot be used: "),
        ("optimizer.lr_scale={a: .nan}", "optimizer.lr_scale={'a': nan} (command line) cannot be used: "),
        ("model.channels=3", "model.channels=3 (command line) cannot be used: "),
        ("seed=one", "seed='one' (command line) cannot be used: it must be an integer."),
        ("seed=true", "seed=True (command line) cannot be used: it must be an integer."),
        ("seed=1.5", "seed=1.5 (command line) cannot be used: it must be an integer."),
        ("metrics=null", "metrics=None cannot be used: it must be the name of a metric, or a list of names."),
        ("metrics=3", "metrics=3 cannot be used: it must be the name of a metric, or a list of names."),
        ("metrics=[]", "metrics=[] cannot be used: it must be the name of a metric, or a list of names."),
        ("dataset.root=[a]", "dataset.root=['a'] cannot be used: it must be a path."),
    ],
)
def test_values_of_the_wrong_type_are_named_with_key_and_origin(word, text):
    assert refusal(word).startswith(text)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("clip.frames=0", "clip.frames=0 cannot be used: it must be at least 1."),
        ("clip.size=[0,96]", "clip.size=(0, 96) cannot be used: it must be two positive integers."),
        ("clip.overlap=4", "clip.overlap=4 cannot be used: it must be from 0 to clip.frames - 1."),
        (
            "clip.sampling=randm",
            "clip.sampling='randm' cannot be used: it must be one of random, equispaced, dense, all. "
            "Did you mean 'random'?",
        ),
        ("augment.noise=-1", "augment.noise=-1.0 cannot be used: it must be 0 or more."),
        ("augment.scale=1", "augment.scale=1.0 cannot be used: it must be from 0 to below 1."),
        ("augment.translate=2", "augment.translate=2.0 cannot be used: it must be from 0 to 1."),
        ("augment.rotation_deg=181", "augment.rotation_deg=181.0 cannot be used: it must be from 0 to 180."),
        ("split.val=1", "split.val=1.0 cannot be used: it must be from 0 to below 1."),
        ("split.seed=-1", "split.seed=-1 cannot be used: it must be 0 or more."),
        ("optimizer.lr=0", "optimizer.lr=0.0 cannot be used: it must be above 0."),
        ("optimizer.lr=.nan", "optimizer.lr=nan (command line) cannot be used: it is not a number."),
        ("loss.smooth=nan", "loss.smooth='nan' (command line) cannot be used: it is not a number."),
        ("optimizer.lr=.inf", "optimizer.lr=inf cannot be used: it must be above 0."),
        ("optimizer.betas=[0.9,1]", "optimizer.betas=(0.9, 1.0) cannot be used: it must be from 0 to below 1."),
        (
            "optimizer.lr_scale={a: 0}",
            "optimizer.lr_scale={'a': 0.0} cannot be used: it must be names of parameters with factors above 0.",
        ),
        (
            "optimizer.lr_scale={a: {b: 1}}",
            "optimizer.lr_scale={'a': {'b': 1}} cannot be used: it must be names of parameters with factors above 0.",
        ),
        (
            "optimizer.decay=weight",
            "optimizer.decay='weight' cannot be used: it must be one of all, weights. Did you mean 'weights'?",
        ),
        ("schedule.warmup=1", "schedule.warmup=1.0 cannot be used: it must be from 0 to below 1."),
        ("train.batch_size=0", "train.batch_size=0 cannot be used: it must be at least 1."),
        ("train.max_steps=-1", "train.max_steps=-1 cannot be used: it must be 0 or more."),
        ("train.ema=1", "train.ema=1.0 cannot be used: it must be from 0 to below 1."),
        ("train.save_every_s=-1", "train.save_every_s=-1.0 cannot be used: it must be 0 or more."),
        ("evaluate.at=pixel", "evaluate.at='pixel' cannot be used: it must be one of source, model."),
        ("seed=-1", "seed=-1 cannot be used: it must be from 0 to 2**63 - 1."),
        ("dataset.cases=0", "echo phantom: cases=0 is out of range; allowed: 1 to 1000000."),
    ],
)
def test_values_out_of_range_are_refused_with_what_is_allowed(word, text):
    assert refusal(word) == text


def test_val_and_test_must_leave_something_to_train_on():
    assert refusal("split.val=0.5", "split.test=0.5") == (
        "split.val + split.test=1.0 cannot be used: it must be below 1."
    )


@pytest.mark.parametrize(
    "word",
    [
        "optimizer.lr=${train.epochs}",
        "dataset.vendor=${oc.env:HOME}",
        "metrics=[dice,'${x}']",
        'train.precision="\\x24{oc.env:HOME}"',  # YAML's escape of the dollar sign
        'train.epochs="\\u0024{oc.env:HOME}"',
        "model={channels: ['${x}']}",
    ],
)
def test_interpolations_are_refused_on_the_command_line(word):
    """However they are written: nothing in a configuration is ever executed."""
    text = refusal(word)
    assert "(command line) contains '${': configurations hold values, not expressions. Write the value itself." in text


def test_interpolations_are_refused_in_files(tmp_path):
    file = tmp_path / "mine.yaml"
    for content in (
        "optimizer: {lr: '${oc.env:HOME}'}",
        "metrics: ['${a}']",
        'dataset: {vendor: "\\x24{oc.env:HOME}"}',
        "seed: ${seed}",
        "train: {nested: [{deep: ['x${y}']}]}",
    ):
        file.write_text(content)
        assert f"({file}) contains '${{': configurations hold values, not expressions." in refusal(file=file)


def test_files_that_are_no_configuration_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    assert refusal(file=file) == f"The configuration file {file} does not exist."
    for content in (b"a: [", b"\xff\xfe\x00", b"a: !!python/object/apply:os.system ['true']"):
        file.write_bytes(content)
        assert refusal(file=file).startswith(f"The configuration file {file} cannot be read as YAML: ")
    file.write_text("- a\n- b\n")
    assert refusal(file=file) == f"The configuration file {file} must hold keys and values."
    assert refusal(file=tmp_path).startswith(f"The configuration file {tmp_path} cannot be read as YAML: ")
    file.write_text("")
    assert composed(file=file).config == composed().config


def test_words_that_are_no_setting_are_refused():
    assert refusal("fast") == "'fast' is not of the form key=value, e.g. train.epochs=20."
    assert refusal("=3") == "'=3' is not of the form key=value, e.g. train.epochs=20."
    assert refusal("metrics=[dice").startswith("The value of 'metrics=[dice' cannot be read as YAML: ")


def test_names_that_do_not_exist():
    assert refusal(model=None) == "No model is named. Say which with --model NAME; medvid-run plugins list shows them."
    text = refusal("preset=smal")
    assert text == "Model 'unet' has no preset 'smal'. Did you mean 'small'? Known: tiny, small, full."
    assert refusal(model="unnet", error=PluginError).startswith("No model is called 'unnet'. Did you mean 'unet'? ")
    assert refusal("loss=dise", error=PluginError).startswith("No loss is called 'dise'. Did you mean 'dice'? ")


def test_yaml_words_and_numbers():
    """1e-4 is a number; no and yes stay words where a word is wanted; lists, null and ``=`` in a value work."""
    assert composed("optimizer.lr=1e-4").config.optimizer.lr == 1e-4
    assert composed("optimizer.lr=1").config.optimizer.lr == 1.0
    assert composed("train.precision=no").config.train.precision == "no"
    assert composed("train.max_steps=null").config.train.max_steps is None
    assert composed("train.max_steps=").config.train.max_steps is None
    assert composed("clip.size=[64, 96]").config.clip.size == (64, 96)
    assert composed("metrics=mae").config.metrics == ("mae",)
    assert composed("metrics=[mae,dice]").config.metrics == ("mae", "dice")
    assert composed("dataset={cases: 5, frames: 7}").config.dataset.config.frames == 7
    assert parse_overrides(["dataset.root=/a=b/c"]) == {"dataset.root": "/a=b/c"}


def test_no_and_yes_are_class_names_too(vtus):
    """A data set whose one class is called ``yes`` must not end up with a class called ``True``."""
    assert composed("dataset.classes=[yes]", data=str(vtus())).config.dataset.config.classes == ("yes",)


def test_config_yaml_reads_back_equal(tmp_path):
    """A run's ``config.yaml`` is the whole configuration: composing it anew gives the same one."""
    words = ["train.precision=no", "optimizer.lr=3e-5", "train.max_steps=7", "metrics=[mae,dice]", "loss=dice"]
    first = composed(*words, "dataset.vendor=borea", "dataset.cases=3").config
    file = tmp_path / "config.yaml"
    file.write_text(first.to_yaml())
    again = compose(registry(), None, None, [], file)
    assert again.config == first
    assert set(again.origins.values()) == {str(file)}
    assert read_config_file(file) == flatten(first.to_dict())


def test_config_of_one_data_set_serves_another(tmp_path, vtus):
    """--data with a stored configuration: settings of the old data set are left behind, the rest holds."""
    file = tmp_path / "config.yaml"
    file.write_text(composed("dataset.cases=3", "train.epochs=3").config.to_yaml())
    result = composed(file=file, data=str(vtus()))
    assert (result.config.dataset.name, result.config.train.epochs) == ("vtus", 3)


@pytest.mark.parametrize("model", [spec.name for spec in registry().specs(ModelSpec)])
def test_every_preset_of_every_installed_model_is_valid_and_round_trips(model, tmp_path):
    spec = registry().find("model", model).spec
    for preset in spec.presets:
        first = composed(f"preset={preset}", model=model).config
        file = tmp_path / f"{preset}.yaml"
        file.write_text(first.to_yaml())
        assert compose(registry(), None, None, [], file).config == first
        for name in first.metrics if first.metrics != ("auto",) else ():
            assert isinstance(registry().find("metric", name).spec, MetricSpec)
        assert isinstance(registry().find("loss", first.loss.name).spec, LossSpec)


KEYS = sorted({*composed().origins})
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["null", "no", "[]", "{}", "[1,[2]]", "{a: 1}", ".inf", ".nan", "1e400", "-0", "0x1F", "1:30"]),
    st.integers().map(str),
    st.floats().map(str),
)


@given(st.sampled_from(KEYS), WORDS)
def test_any_value_of_any_key_is_taken_or_refused_in_words(key, text):
    """Never a traceback: a value either enters the configuration or is a ConfigError or PluginError."""
    try:
        config = composed(f"{key}={text}").config
    except (ConfigError, PluginError):
        return
    for value in flatten(config.to_dict()).values():
        assert "${" not in str(value)
        assert not isinstance(value, float) or not math.isnan(value)
    back = OmegaConf.to_container(OmegaConf.create(config.to_yaml()))
    assert back == config.to_dict()


def test_paths_with_spaces_and_umlauts(tmp_path, vtus):
    """Clinicians' folders are called so."""
    root = vtus()
    odd = tmp_path / "Prüfung – Dr. O'Neil (2024) # 1"
    root.rename(odd)
    config = composed(data=str(odd)).config
    assert config.data_root == str(odd.resolve())
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert Path(compose(registry(), None, None, [], file).config.data_root) == odd.resolve()


def test_a_name_that_two_plugins_offer_stays_qualified(layered):
    """``--model distribution/name`` is kept whole in the configuration where the short name means two models."""
    other = next(entry for entry in layered.provided["model"] if entry.spec.name == "layered")
    layered.provided["model"].append(Provided("medvid-twin", "2", dataclasses.replace(other.spec)))
    result = compose(layered, "medvid-twin/layered", "suggesting")
    assert result.config.model.name == "medvid-twin/layered"
    assert layered.find("model", result.config.model.name).distribution == "medvid-twin"


def test_a_preset_cannot_be_laid_over_a_file_made_with_another(tmp_path):
    """The file's values outrank presets: the run would bear the name of a preset it does not have."""
    file = tmp_path / "config.yaml"
    file.write_text(composed("preset=tiny").config.to_yaml())
    assert refusal("preset=full", model=None, file=file) == (
        f"preset=full cannot be laid over {file}, which was made with preset 'tiny': the values in the file outrank "
        "every preset, so that only the name would change. Set the values you mean, or leave --config out."
    )
    assert composed("preset=tiny", model=None, file=file).config.preset == "tiny"
    file.write_text("train: {epochs: 3}\n")
    assert composed("preset=full", file=file).config.preset == "full"


@pytest.mark.parametrize(
    ("reference", "cause"),
    [
        ("no_such_library.data:can_read", "PluginError: Cannot import 'no_such_library.data:can_read': "),
        ("os:can_read", "PluginError: Module 'os' has no attribute 'can_read'."),
        ("sys:exit", "SystemExit: "),
        ("json:loads", "TypeError: "),
    ],
)
def test_a_broken_can_read_costs_its_plugin_alone(layered, vtus, tmp_path, reference, cause):
    """It is on record as a problem, once, and shown where nothing else reads the folder."""
    entry = next(entry for entry in layered.provided["dataset"] if entry.spec.name == "vtus")
    broken = dataclasses.replace(entry.spec, name="broken", can_read=reference)
    layered.provided["dataset"].insert(0, Provided("acme", "1", broken))
    root = vtus()
    for _ in range(2):
        assert compose(layered, "unet", str(root)).config.dataset.name == "vtus"
    (problem,) = layered.problems
    assert (problem.distribution, problem.stage) == ("acme", "can_read")
    assert problem.cause.startswith(cause)
    (tmp_path / "odd").mkdir()
    with pytest.raises(ConfigError) as info:
        compose(layered, "unet", str(tmp_path / "odd"))
    assert str(info.value).splitlines()[1].startswith(f"Plugin acme failed at stage 'can_read': {cause}")


def test_a_broken_hint_costs_its_plugin_alone(layered, tmp_path):
    """The folder is refused as ever, with what the others have to say."""
    (tmp_path / "labels.csv").write_text("file,label\n")
    entry = next(entry for entry in layered.provided["dataset"] if entry.spec.name == "vtus")
    broken = dataclasses.replace(entry.spec, name="broken", hint="sys:exit")
    layered.provided["dataset"].insert(0, Provided("acme", "1", broken))
    with pytest.raises(ConfigError) as info:
        compose(layered, "unet", str(tmp_path))
    _, hint, problem = str(info.value).splitlines()
    assert hint.startswith("If labels.csv in it lists the clips, call it manifest.csv or give --data ")
    assert problem.startswith("Plugin acme failed at stage 'hint': SystemExit")


def test_a_preset_of_augmentation_stands_for_all_its_keys():
    """Each value says that it came from there; keys given beside it win, and those it does not name are off."""
    found = composed("augment.preset=medium", "augment.blur=0.9")
    augment = found.config.augment
    assert (augment.rotation_deg, augment.affine, augment.crop, augment.gamma) == (15.0, 0.3, 0.3, 0.2)
    assert (augment.brightness, augment.contrast, augment.saturation, augment.blur) == (0.3, 0.3, 0.3, 0.9)
    assert found.origins["augment.crop"] == "augment.preset=medium"
    assert found.origins["augment.blur"] == found.origins["augment.preset"] == "command line"
    assert composed().config.augment.preset == "custom"


def test_a_preset_of_augmentation_goes_over_what_the_data_set_suggests(vtus):
    """And under what is typed; none switches all off, whatever was suggested."""
    root = str(vtus())
    assert composed(data=root).config.augment.scale == 0.4
    assert composed("augment.preset=light", data=root).config.augment.scale == 0.0
    assert composed("augment.preset=none", data=root).config.augment == AugmentConfig(preset="none")


def test_a_run_with_a_preset_of_augmentation_is_read_back(tmp_path):
    """The file names every value; another preset typed over it replaces them."""
    one = composed("augment.preset=heavy", "augment.gamma=0.7")
    path = tmp_path / "config.yaml"
    path.write_text(one.config.to_yaml())
    assert compose(registry(), config_file=path).config.augment == one.config.augment
    other = compose(registry(), config_file=path, overrides=["augment.preset=light"]).config.augment
    assert other == composed("augment.preset=light").config.augment


def test_an_unknown_preset_of_augmentation_is_refused(refused):
    assert refused("--model", "unet", "augment.preset=havy") == (
        "augment.preset='havy' cannot be used: it must be one of custom, none, light, medium, heavy. "
        "Did you mean 'heavy'?"
    )


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("clip.fan_crop=yes", "clip.fan_crop='yes' cannot be used: it must be one of none, mask, estimate, auto."),
        ("clip.max_numerosity=-1", "clip.max_numerosity=-1 cannot be used: it must be 0 or more."),
        ("clip.numerosity=all", "clip.numerosity='all' cannot be used: it must be one of equispaced, random."),
        ("augment.crop=2", "augment.crop=2.0 cannot be used: it must be from 0 to 1."),
        (
            "augment.crop_side=[0.9,0.8]",
            "augment.crop_side=(0.9, 0.8) cannot be used: it must be two rising numbers above 0, up to 1.",
        ),
        (
            "augment.blur_sigma=[0,1]",
            "augment.blur_sigma=(0.0, 1.0) cannot be used: it must be two rising numbers above 0.",
        ),
    ],
)
def test_settings_of_crops_and_changes_out_of_range_are_refused(refused, word, text):
    assert refused("--model", "unet", word) == text
