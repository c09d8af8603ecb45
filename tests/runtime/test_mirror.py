"""The copy of metrics and pictures for Weights & Biases, without a network."""

import sys
import time

import numpy as np
import pytest

from refocus_jax.runtime import mirror
from refocus_jax.runtime.mirror import Mirror
from refocus_jax.runtime.writer import Writer


def write(directory, steps):
    directory.mkdir(parents=True, exist_ok=True)
    copy = Mirror("focus", str(directory), {"generator": {"model": {"depth": 2}}})
    with Writer(directory, resume_step=steps[0] - 1, mirror=copy) as writer:
        for step in steps:
            writer.scalars(step, {"loss/total": step / 7})
        writer.image(steps[-1], "samples", np.zeros((4, 5, 3), np.uint8))
    for _ in range(600):  # wandb's own process may write them a little later
        found = {path.name: path.read_bytes() for path in directory.glob("wandb/offline-run-*/*.wandb")}
        if all(b"loss/total" in content for content in found.values()):
            break
        time.sleep(0.1)
    return found, list(directory.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_numbers_and_pictures_are_copied_and_a_resumed_stage_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    found, pictures = write(tmp_path / "run" / "generator", (1, 2))
    (name, content), = found.items()
    assert len(pictures) == 1
    for text in (b"loss/total", b"0.14285714285714285", b"depth", b"run/generator", b"focus"):
        assert text in content, text
    assert write(tmp_path / "run" / "generator", (2, 3))[0].keys() == {name}
    assert write(tmp_path / "run" / "tokenizer", (2, 3))[0].keys() != {name}


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    import wandb  # reads its variables when it is imported

    def refuse(**settings):
        raise wandb.Error("nobody has logged in")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match="log.wandb is 'focus', and wandb does not start: nobody has logged in. Run "):
        Mirror("focus", str(tmp_path), {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(mirror.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"log.wandb=focus needs wandb; run pip install 'refocus_jax\[wandb\]'"):
        Mirror("focus", str(tmp_path), {})
