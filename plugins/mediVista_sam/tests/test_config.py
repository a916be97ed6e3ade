"""Settings: what is refused, in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medvid_core.errors import ConfigError
from medvid_medivista_sam.config import SWITCHES, VARIANTS, WIRINGS, MediViSTAConfig


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"wiring": "relased"}, "model.wiring='relased' is unknown. Did you mean 'released'? Known: released, paper"),
        ({"variant": "vit_g"}, "model.variant='vit_g' is unknown"),
        ({"up_path": "unet"}, "model.up_path='unet' is unknown. Known: mhca, sam."),
        ({"grid": 0}, "model.grid=0 must be at least 1."),
        ({"wiring": "fusion", "low_rank": -1}, "model.low_rank=-1 must be 0 (none) or more."),
        ({"prompt_rate": 1.5}, "model.prompt_rate=1.5 must be a share from 0 to 1."),
        ({"wiring": "released", "temporal": False}, "model.temporal=False has no effect with model.wiring=released"),
        ({"wiring": "fusion", "up_path": "sam"}, "has no effect with model.wiring=fusion: it belongs to paper."),
        ({"low_rank": 0}, "model.low_rank=0 has no effect with model.wiring=paper: it belongs to fusion."),
    ],
)
def test_refused(settings, text):
    with pytest.raises(ConfigError) as error:
        MediViSTAConfig(**settings)
    assert text in str(error.value)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_takes_its_own_switches(wiring):
    changed = {"low_rank": 4, "up_path": "sam", "mlp_residual": True}
    own = {name: changed.get(name, False) for name, wirings in SWITCHES.items() if wiring in wirings}
    config = MediViSTAConfig(wiring=wiring, **own)
    assert {name: getattr(config, name) for name in own} == own


@pytest.mark.parametrize("variant", VARIANTS.values())
def test_sizes_that_work(variant):
    assert variant.dim % variant.heads == 0
    assert variant.dim % 4 == 0  # for sinusoidal positions
    assert max(variant.global_blocks) == variant.depth - 1


def test_the_grid_is_the_variants_unless_given():
    assert MediViSTAConfig().stored_grid == 64
    assert MediViSTAConfig(grid=16).stored_grid == 16


def test_torch_is_not_imported():
    code = "import sys, medvid_medivista_sam.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
