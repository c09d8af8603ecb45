"""What --mode=demo refuses before it loads anything, and what it passes to the page."""

import importlib.util
import os

import pytest

from refocus_jax.modes import demo
from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import small


def test_without_gradio_the_extra_is_named(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"--mode=demo needs gradio; run pip install 'refocus_jax\[demo\]'"):
        demo.run(micro(), str(tmp_path / "run"))


def test_smoothing_and_a_missing_model_are_refused(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/run"):
        demo.run(micro(), str(tmp_path / "run"))
    c = micro()
    c.sampling.smooth = True
    with pytest.raises(ValueError, match="sampling.smooth is True.*set it to False"):
        demo.run(c, str(tmp_path / "run"))


def test_the_page_gets_the_model_and_a_folder_that_is_deleted(micro, tmp_path, monkeypatch):
    page, served = pytest.importorskip("refocus_jax.demo.page"), []

    def serve(made, port):
        assert made.folder.is_dir() and os.environ["GRADIO_TEMP_DIR"] == str(made.folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        served.append((made, port))

    generator = small.generator()
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setattr(page, "serve", serve)
    monkeypatch.setattr(demo, "choose_generator", lambda c, workdir: (generator, {"generator": workdir}))
    c = micro()
    c.sampling.cfg, c.demo.port = 3.0, 7000
    demo.run(c, "runs/a")
    (made, port), = served
    assert made.generator is generator and made.origin == {"generator": "runs/a"} and port == 7000
    assert made.settings == SamplingSettings(cfg=3.0, top_k=c.sampling.top_k, top_p=c.sampling.top_p)
    assert not made.folder.exists()
