"""Modes that run in one process, refused before anything is loaded where there are several."""

import jax
import pytest

from refocus_jax.modes import aliasing, demo, edit, export


@pytest.mark.parametrize("mode", [aliasing, demo, edit, export], ids=lambda mode: mode.__name__.rpartition(".")[2])
def test_several_processes_are_refused(mode, micro, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    name = mode.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"--mode={name} runs in one process, and this is one of 2; start it on one"):
        mode.run(micro(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
