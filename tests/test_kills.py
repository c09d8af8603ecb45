"""A run that is killed, even during saves, ends bit for bit like one that is not: benchmarks/kills.py on `micro`."""

import pytest

from benchmarks import kills


@pytest.mark.slow  # eight starts of the program
def test_killed_runs_lose_nothing(tmp_path):
    config = "tests/fixtures/micro.py"
    kills.kill_until_done(config, tmp_path / "whole", tmp_path / "cache", 0, 0, 0.0)
    killed = kills.kill_until_done(config, tmp_path / "killed", tmp_path / "cache", 3, 1, 5.0)
    assert len(killed) == 3 and sum("in a save" in moment for moment in killed) >= 2
    assert kills.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert len(kills.contents(tmp_path / "whole")) > 100
