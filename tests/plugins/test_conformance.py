"""The conformance suite passes sound plugins and catches each broken promise by the check that states it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvid_core.testing import subject
from medvid_core.testing.installed import install

HERE = Path(__file__).parent
SOURCES = {
    f"acme_video/{path.name}": path.read_text("utf-8") for path in (HERE / "acme_video" / "acme_video").glob("*.py")
}

# mutation → file, text, what it becomes, the check that must catch it, and what that check says
MUTATIONS = {
    "imports torch": (
        "plugin",
        "\nMEDVID",
        "\nimport torch\nMEDVID",
        "plugin.py.test_import_is_light",
        "importing acme_video.plugin imports torch",
    ),
    "configuration imports torch": (
        "config",
        "\nfrom dataclasses",
        "\nimport torch\nfrom dataclasses",
        "plugin.py.test_config_is_torch_free",
        "importing acme_video.config imports torch",
    ),
    "upper-case name": (
        "plugin",
        'name="acme-net"',
        'name="Acme-Net"',
        "plugin.py.test_name_is_legal",
        "'Acme-Net' must be lower case: letters and digits, joined by '-'",
    ),
    "unknown task": (
        "plugin",
        'tasks=("segmentation",),\n            build="acme_video.losses',
        'tasks=("painting",),\n            build="acme_video.losses',
        "plugin.py.test_tasks_are_known",
        "['painting'] are no tasks; those are segmentation, classification",
    ),
    "unresolvable reference": (
        "plugin",
        "acme_video.network:build",
        "acme_video.network:bild",
        "plugin.py.test_references_resolve",
        "Module 'acme_video.network' has no attribute 'bild'.",
    ),
    "missing preset": (
        "plugin",
        '"small": {',
        '"smal": {',
        "plugin.py.test_preset_composes",
        "acme-net has no preset 'small'",
    ),
    "preset with an unknown key": (
        "plugin",
        '"model.width": 8, "clip.frames": 3, "clip.size": (16',
        '"model.widht": 8, "clip.frames": 3, "clip.size": (16',
        "plugin.py.test_preset_composes",
        "Unknown key 'model.widht' (value 8, preset tiny). Did you mean 'model.width'?",
    ),
    "setting without a default": (
        "config",
        "width: int = 16",
        "width: int",
        "plugin.py.test_config_has_defaults",
        "AcmeNetConfig.width has no default",
    ),
    "empty card": (
        "plugin",
        'summary="Focal loss.", ',
        "",
        "plugin.py.test_card_is_filled",
        "the card of acme-focal has no summary",
    ),
    "hook that raises": (
        "plugin",
        "def medvid_metrics():\n",
        "def medvid_metrics():\n    raise KeyError('key')\n",
        "plugin.py.test_loads_without_problems",
        "Plugin acme-video failed at stage 'medvid_metrics': KeyError: 'key'",
    ),
    "NaN": (
        "network",
        "return {self.output_name: logits}",
        'return {self.output_name: logits * float("nan")}',
        "model.py.test_output_has_the_shape_of_its_task",
        "output holds NaN or infinity",
    ),
    "wrong shape": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits[..., ::2]}",
        "model.py.test_output_has_the_shape_of_its_task",
        ", 16, 8], should be [",
    ),
    "wrong output name": (
        "network",
        "return {self.output_name: logits}",
        'return {"logits": logits}',
        "model.py.test_output_has_the_shape_of_its_task",
        "there is no output 'answer' among ['logits']",
    ),
    "half precision": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits.half()}",
        "model.py.test_output_has_the_shape_of_its_task",
        "output is torch.float16, should be float32",
    ),
    "fixed length": (
        "network",
        "return {",
        "assert x.shape[1] == 3, 'three frames only'\n        return {",
        "model.py.test_takes_any_number_of_frames",
        "three frames only",
    ),
    "fixed size": (
        "network",
        "return {",
        "assert x.shape[3] == x.shape[4], 'squares only'\n        return {",
        "model.py.test_takes_any_size_that_is_a_multiple",
        "squares only",
    ),
    "weights on a real device": (
        "network",
        "        self.layers",
        '        self.register_buffer("one", torch.ones(1, device="cpu"))\n        self.layers',
        "model.py.test_builds_on_the_meta_device",
        "these are on a real device: one",
    ),
    "unseeded weights": (
        "network",
        "self.output_name = output.name",
        "self.output_name = output.name\n        import os\n"
        '        self.register_buffer("x", torch.tensor([*os.urandom(8)]))',
        "model.py.test_initialisation_is_seeded",
        "two models of one seed: x differs",
    ),
    "dead parameter": (
        "network",
        "self.output_name = output.name",
        "self.output_name = output.name\n        self.dead = nn.Parameter(torch.zeros(1))",
        "model.py.test_gradients_arrive",
        "no gradient reaches dead: use them or name them unused_parameters",
    ),
    "parameters wrongly said to be unused": (
        "plugin",
        "recipe=",
        'unused_parameters=("layers.0.*",), recipe=',
        "model.py.test_gradients_arrive",
        "unused_parameters names layers.0.bias, layers.0.weight, which get a gradient",
    ),
    "chance in evaluation": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits + torch.rand(1)}",
        "model.py.test_evaluation_is_deterministic",
        "the same clip twice: answer differs",
    ),
    "output depends on the batch": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits - logits.mean(0)}",
        "model.py.test_clip_alone_equals_clip_in_a_batch",
        "clip 0 alone and in a batch: Tensor-likes are not close!",
    ),
    "output depends on the place in the batch": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits * torch.arange(len(x)).view(-1, 1, 1, 1, 1)}",
        "model.py.test_order_of_a_batch_does_not_matter",
        "clips in another order: Tensor-likes are not close!",
    ),
    "batch changed": (
        "network",
        "        x = ",
        '        batch["video"] += 1\n        x = ',
        "model.py.test_batch_is_left_alone",
        "the model changed video in place",
    ),
    "weights outside the state dict": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits + id(self) % 997}",
        "model.py.test_model_file_is_exact",
        "outputs before and after: answer differs",
    ),
    "learns nothing": (
        "network",
        "return {self.output_name: logits}",
        "return {self.output_name: logits * 1e-6}",
        "model.py.test_overfits_two_clips",
        "with lr=0.01 (the tiny preset's)",
    ),
    "padding counts": (
        "losses",
        'batch["frame_real"] & batch["mask_labelled"]',
        'batch["mask_labelled"]',
        "loss.py.test_padding_does_not_count",
        "sums with other padding",
    ),
    "padding counts in the recipe's loss": (
        "losses",
        'batch["frame_real"] & batch["mask_labelled"]',
        'batch["mask_labelled"]',
        "model.py.test_padding_does_not_change_the_loss",
        "sums with other padding",
    ),
    "unannotated frames count": (
        "losses",
        'batch["frame_real"] & batch["mask_labelled"]',
        'batch["frame_real"]',
        "loss.py.test_frames_without_annotation_do_not_count",
        "counts with other masks",
    ),
    "unlabelled pixels count": (
        "losses",
        '(batch["mask"] != UNLABELLED)',
        '(batch["mask"] >= 0)',
        "loss.py.test_unlabelled_pixels_do_not_count",
        "",
    ),
    "mean instead of sum": (
        "losses",
        "(weight * error * valid).sum()",
        "(weight * error * valid).mean()",
        "loss.py.test_sums_and_counts_add_up",
        "sums: ",
    ),
    "division by nothing": (
        "losses",
        "(weight * error * valid).sum()",
        "(weight * error * valid).sum() / valid.sum()",
        "loss.py.test_nothing_annotated_costs_nothing",
        "part 'focal' is nan",
    ),
    "infinite gradient": (
        "losses",
        "weight = (1 - (-error).exp()) ** self.gamma",
        "weight = (1 - (-error).exp()) ** 0.5",
        "loss.py.test_gradients_are_finite",
        "the gradient is not finite",
    ),
    "counts and sums of other names": (
        "losses",
        'return {"focal": self.valid',
        'return {"focl": self.valid',
        "loss.py.test_parts_are_scalars_with_counts",
        "counts has ['focl'], the sums ['focal']",
    ),
    "wrong is cheaper": (
        "losses",
        "(weight * error * valid).sum()",
        "-(weight * error * valid).sum()",
        "loss.py.test_right_costs_less_than_wrong",
        "a right prediction costs",
    ),
    "unpicklable loss": (
        "losses",
        "self.name = output.name",
        "self.name = output.name\n        self.f = lambda: 1",
        "loss.py.test_reaches_a_spawned_worker",
        "pickle",
    ),
    "metric of another name": (
        "metrics",
        '"acme-volume"',
        '"volume"',
        "metric.py.test_names_are_its_own",
        "the spec says 'acme-volume', the metric 'volume'",
    ),
    "metric the wrong way round": (
        "plugin",
        'build="acme_video.metrics:Volume",',
        'build="acme_video.metrics:Volume", higher_is_better=False,',
        "metric.py.test_perfect_prediction_is_best",
        "the truth scores 1.0, its opposite 0.0",
    ),
    "metric infinite on empty masks": (
        "metrics",
        "(tp > 0), 1.0)",
        '(tp > 0), float("inf"))',
        "metric.py.test_empty_masks_spoil_nothing",
        "an empty mask scores",
    ),
    "metric that the order of cases changes": (
        "metrics",
        "    def per_frame",
        "    def summarise(self, rows):\n        return {self.name: rows[0][self.name]}\n\n    def per_frame",
        "metric.py.test_order_of_cases_does_not_matter",
        "the other way round",
    ),
    "case ids that repeat": (
        "datasets",
        'case_id=f"blob-{number}"',
        'case_id="blob"',
        "dataset.py.test_index_is_sound",
        "case ids repeat",
    ),
    "data drawn anew each time": (
        "datasets",
        "default_rng([source.options[0], frame])",
        "default_rng()",
        "dataset.py.test_sample_is_the_same_each_time",
        "case 'blob-0' differs when read twice",
    ),
    "masks beyond the classes": (
        "datasets",
        "left : left + 16] = 1",
        "left : left + 16] = 1 + 0 * frame\n    masks[:, 0, :] = 2",
        "dataset.py.test_masks_hold_its_classes",
        "",
    ),
    "stream that does not come": (
        "preprocess",
        '{**sample, "difference": change}',
        '{**sample, "diff": change}',
        "preprocessor.py.test_gives_what_it_promises",
        "acme-difference promises the stream 'difference' and gives",
    ),
    "video changed": (
        "preprocess",
        "    change = ",
        "    video += 1\n    change = ",
        "preprocessor.py.test_leaves_the_rest_alone",
        "acme-difference changes 'video'",
    ),
    "cached and drawn": (
        "preprocess",
        "change = torch.zeros_like(video)",
        "change = torch.randn_like(video)",
        "preprocessor.py.test_cached_means_deterministic",
        "the stream 'difference' differs the second time",
    ),
    "folder reader that takes anything": (
        "plugin",
        'config="acme_video.config:AcmeBlobsConfig",',
        'config="acme_video.config:AcmeBlobsConfig",\n            can_read="builtins:bool",',
        "dataset.py.test_can_read_says_no_to_an_empty_folder",
        "acme-blobs says it can read an empty folder",
    ),
    "index drawn anew each time": (
        "datasets",
        'f"patient-{number}"',
        'f"patient-{np.random.rand()}"',
        "dataset.py.test_index_is_the_same_each_time",
        "",
    ),
    "case that cannot be sent": (
        "datasets",
        "frames=config.frames,",
        'frames=config.frames,\n            metadata={"f": lambda: 1},',
        "dataset.py.test_reaches_a_spawned_worker",
        "pickle",
    ),
    "loss changes the batch": (
        "losses",
        'mask = batch["mask"] * valid',
        'mask = batch["mask"].mul_(0)',
        "loss.py.test_batch_and_outputs_are_left_alone",
        "the loss changed 'mask' in the batch",
    ),
    "one value for all frames": (
        "metrics",
        "(tp > 0), 1.0)",
        "(tp > 0), 1.0).mean(0, keepdim=True)",
        "metric.py.test_per_frame_has_a_value_for_each_frame",
        "acme-volume has shape [1], should be [4]",
    ),
    "unlabelled pixels are scored": (
        "metrics",
        "        tp, fp",
        "        frames.valid = frames.mask >= 0\n        tp, fp",
        "metric.py.test_unlabelled_pixels_do_not_count",
        "with another prediction at unlabelled pixels",
    ),
    "unknown targets are scored": (
        "metrics",
        "            if output.name in case.true\n",
        "",
        "metric.py.test_unknown_targets_spoil_nothing",
        "KeyError: 'answer'",
    ),
    "columns without the output's name": (
        "metrics",
        "self.column(output)",
        "self.name",
        "metric.py.test_names_are_its_own",
        "of two outputs the columns acme-hits do not say of which they are",
    ),
    "spec that cannot be sent": (
        "plugin",
        '"full": {}',
        '"full": {"seed": lambda: 1}',
        "model.py.test_reaches_a_spawned_worker",
        "pickle",
    ),
    "preprocessor for the main process only": (
        "preprocess",
        "    change = ",
        "    import multiprocessing as m\n\n    assert m.parent_process() is None, 'not in workers'\n    change = ",
        "preprocessor.py.test_reaches_a_spawned_worker",
        "not in workers",
    ),
}

STAGE_CHECKS = {
    f"preprocessor.py.test_stages_{end}" for end in ("say_what_they_are", "make_streams_of_their_kind", "are_kept")
}
"""The example plugin has no preprocessor with stages, so nothing of it can be broken: these run on those installed."""

UNSOUND_CHECKS = {"plugin.py.test_speaks_the_plugin_api", "plugin.py.test_offers_something"}
"""Broken, these leave nothing to check: see the tests on usage errors."""

pytestmark = pytest.mark.slow


def plant(folder, sources):
    install(folder, "acme-video", sources, {"acme": "acme_video.plugin"})
    return str(folder)


def mutated(file, old, new):
    path = f"acme_video/{file}.py"
    assert old in SOURCES[path], f"{old!r} is not in {path}"
    return {**SOURCES, path: SOURCES[path].replace(old, new)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run everything in one process: the sound plugins whole, each mutation with its own check."""
    folder = tmp_path_factory.mktemp("conformance")
    sound = plant(folder / "sound", SOURCES)
    jobs = [
        {"name": "sound", "site": sound, "distribution": "acme-video", "select": ""},
        {"name": "core", "site": sound, "distribution": "medvid-core", "select": ""},
    ]
    for number, (name, (file, old, new, check, _)) in enumerate(MUTATIONS.items()):
        site = plant(folder / str(number), mutated(file, old, new))
        select = check.partition(".py.")[2]
        jobs.append({"name": name, "site": site, "distribution": "acme-video", "select": select})
    (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    words = [sys.executable, str(HERE / "run_conformance.py"), "jobs.json", "outcomes.json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "outcomes.json").read_text("utf-8"))


def functions(path):
    tree = ast.parse(path.read_text("utf-8"))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize("name", ["sound", "core"])
def test_sound_plugin_passes(outcomes, name):
    ran = outcomes[name]
    assert {check: text for check, (outcome, text) in ran.items() if outcome == "failed"} == {}
    assert ran[""][0] == 0
    assert len(ran) > 20


def test_sound_plugin_runs_every_check(outcomes):
    checks = {f"{path.name}.{f.name}" for path in subject.CHECKS.glob("*.py") for f in functions(path)}
    assert checks == set(outcomes["sound"]) - {""}


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_promise_is_caught(outcomes, name):
    *_, check, says = MUTATIONS[name]
    assert check in outcomes[name], f"{check} did not run: {outcomes[name]}"
    outcome, text = outcomes[name][check]
    assert outcome == "failed", f"{check} {outcome}"
    assert says in text


def test_every_check_has_a_mutation():
    checks = {f"{path.name}.{f.name}" for path in subject.CHECKS.glob("*.py") for f in functions(path)}
    assert checks == {check for *_, check, _ in MUTATIONS.values()} | STAGE_CHECKS | UNSOUND_CHECKS


@pytest.mark.parametrize("path", sorted(subject.CHECKS.glob("*.py")), ids=lambda path: path.name)
def test_every_check_says_what_it_promises(path):
    for function in functions(path):
        text = ast.get_docstring(function)
        assert text, function.name
        assert "\n" not in text, function.name
        assert text.endswith("."), function.name


def pytest_in(folder, site, *words):
    environment = {**os.environ, "PYTHONPATH": site}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_unknown_distribution(tmp_path):
    done = pytest_in(tmp_path, plant(tmp_path / "site", SOURCES), "--medvid-plugin", "acme-vidoe")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    first, *rest = done.stderr.strip().splitlines()
    says, loaded = first.rstrip(".").split(" Loaded: ")
    assert says == "ERROR: --medvid-plugin: the plugin 'acme-vidoe' is not installed. Did you mean 'acme-video'?"
    assert {"acme-video", "medvid-core"} <= set(loaded.split(", "))  # beside what else is installed
    assert rest == []


def test_distribution_that_does_not_load(tmp_path):
    sources = mutated("plugin", "MEDVID_PLUGIN_API = (1, 0)", "MEDVID_PLUGIN_API = (2, 0)")
    done = pytest_in(tmp_path, plant(tmp_path / "site", sources), "--medvid-plugin", "acme_video")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    first, second = done.stderr.strip().splitlines()
    says, loaded = first.rstrip(".").split(" Loaded: ")
    assert says == "ERROR: --medvid-plugin: the plugin 'acme_video' did not load."
    assert "medvid-core" in loaded.split(", ")
    assert "acme-video" not in loaded
    assert second == (
        "Plugin acme-video failed at stage 'api': PluginError: it needs plugin API (2, 0), this core speaks (1, 0). "
        "Upgrade medvid-core."
    )


def test_files_given_beside_the_option_are_run_alone(tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n", "utf-8")
    site = plant(tmp_path / "site", SOURCES)
    done = pytest_in(tmp_path, site, "--medvid-plugin", "acme-video", "test_own.py", "-v")
    assert done.returncode == 0
    assert "test_own.py::test_own PASSED" in done.stdout
    assert "1 passed" in done.stdout
    offers = "dataset acme-blobs, loss acme-focal, metric acme-volume, metric acme-hits, preprocessor acme-difference"
    assert f"medvid plugin: acme-video 1.0 (model acme-net, {offers})" in done.stdout


def test_pytest_without_the_option_stays_light(tmp_path):
    (tmp_path / "test_own.py").write_text(
        "import sys\ndef test_own():\n    assert not {'torch', 'medvid_core.plugins'} & set(sys.modules)\n", "utf-8"
    )
    done = pytest_in(tmp_path, "", "test_own.py")
    assert done.returncode == 0, done.stdout
