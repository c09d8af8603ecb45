"""A run that is killed, even during saves, ends bit for bit like one that is not: benchmarks/kills.py on `micro`."""

import re
import sys

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
def test_ten_kills_in_a_bucket_lose_nothing(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kills", f"--config={CONFIG}", "--kills=10", f"--directory={tmp_path}",
                                      f"--bucket={url}", "--longest=8"])
    with pytest.raises(SystemExit) as ended:
        kills.main()
    *_, last = printed = capsys.readouterr().out.splitlines()
    assert not ended.value.code, printed
    assert int(re.fullmatch(r"10 kills, (\d+) of them in a save", last)[1]) >= 3
