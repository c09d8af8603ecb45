"""Eight simulated devices, in any arrangement, give the same losses as one."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.parametrize("stage", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"])
def test_eight_devices_give_the_losses_of_one(stage):
    printed = subprocess.run([sys.executable, "-m", "tests.fixtures.meshes", stage], check=True, capture_output=True)
    losses = json.loads(printed.stdout.splitlines()[-1])
    one = losses.pop("1x1")
    assert set(losses) == {"8x1", "2x4", "1x8"} and one[-1] != one[0]
    for found in losses.values():
        np.testing.assert_allclose(found[0], one[0], rtol=1e-6)
        np.testing.assert_allclose(found, one, rtol=1e-3)
