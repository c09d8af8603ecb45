"""A run that is killed, even during saves, ends bit for bit like one that is not: benchmarks/kills.py on `micro`."""

import pytest

from benchmarks import kills
from tests.fixtures import bucket as emulator

pytestmark = emulator.WARNINGS
CONFIG = "tests/fixtures/micro.py"


@pytest.mark.slow  # eight starts of the program
def test_killed_runs_lose_nothing(tmp_path):
    kills.kill_until_done(CONFIG, tmp_path / "whole", tmp_path / "cache", 0, 0, 0.0)
    killed = kills.kill_until_done(CONFIG, tmp_path / "killed", tmp_path / "cache", 3, 1, 5.0)
    assert len(killed) == 3 and sum("in a save" in moment for moment in killed) >= 2
    assert kills.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert len(kills.contents(tmp_path / "whole")) > 100


@pytest.mark.slow  # fifteen starts of the program
def test_ten_kills_in_a_bucket_lose_nothing(url, tmp_path):
    kills.kill_until_done(CONFIG, tmp_path / "whole", tmp_path / "cache", 0, 0, 0.0)
    found = []
    while len(found) < 10:
        workdir = f"{url}/{len(found)}"
        killed = kills.kill_until_done(CONFIG, workdir, tmp_path / "cache", 10 - len(found), len(found), 8.0)
        assert killed
        found += killed
        assert kills.differences(tmp_path / "whole", kills.fetch(workdir, tmp_path / workdir[-1])) == []
    assert sum("in a save" in moment for moment in found) >= 3
