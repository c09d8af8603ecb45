"""The small model that comes with the package."""

import json
from pathlib import Path

import numpy as np
import pytest

from refocus_jax import pretrained
from refocus_jax.config import catalog
from refocus_jax.pretrained import loading
from refocus_jax.pretrained.choice import choose_generator
from tests.fixtures import workdirs

FOLDER = Path(loading.__file__).with_name("small")


@pytest.fixture(scope="module")
def generator():
    return pretrained.load_generator("small")


def test_it_is_small_and_says_whose_photographs_it_has_learned_from():
    weights = [FOLDER / loading.MODEL, FOLDER / loading.TOKENIZER]
    assert sum(path.stat().st_size for path in weights) < 12e6
    card, credits = ((FOLDER / name).read_text() for name in ("README.md", "CREDITS.txt"))
    assert card.startswith("---\nlicense: cc-by-2.0\n") and "CREDITS.txt" in card
    assert credits.count(".jpg CC-BY ") == 3670  # a line for each photograph of tf_flowers
    assert "/" not in json.loads((FOLDER / "config.json").read_text())["data"]["source"]


def test_it_is_what_its_config_trains(generator):
    trained, names = pretrained.load_config("small")
    c = catalog.load("small")
    for name in ("image_size", "grid_sizes"):
        assert trained[name] == c[name]
    for part in ("model", "alias", "loss", "adversarial"):
        assert trained.tokenizer[part].to_dict() == c.tokenizer[part].to_dict()
    assert trained.generator.model.to_dict() | {"attention": "auto"} == c.generator.model.to_dict()
    assert trained.focus.to_dict() == c.focus.to_dict()
    assert names == generator.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_it_draws_the_colours_of_its_flowers(generator):
    """Sunflowers are yellower than daisies: more red than blue."""
    settings = pretrained.SamplingSettings(cfg=3.0, top_k=0, top_p=0.95)
    drawn = generator.sample([0] * 8 + [3] * 8, seed=0, settings=settings)
    images = np.asarray(generator.images(drawn)).reshape(2, 8, -1, 3)
    assert np.isfinite(images).all() and np.abs(images).max() <= 1
    daisies, sunflowers = (images[..., 0] - images[..., 2]).mean(axis=(1, 2))
    assert sunflowers > daisies + 0.1


def test_a_mode_shows_it_where_its_name_is_the_workdir(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen, origin = choose_generator(catalog.load("small"), "small")
    assert origin == {"generator": "small", "step": None} and chosen.class_names == generator.class_names
    assert not list(tmp_path.iterdir())


def test_a_run_of_its_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.load_config("small")[1][0] == "daisy"
    workdirs.write(tmp_path / "small")
    assert pretrained.load_config("small")[1][0] != "daisy"
