"""Official checkpoints as files and mappings; what a workdir gives is tested in test_experiment.py."""

import numpy as np
import pytest

from refocus_jax import pretrained
from refocus_jax.runtime import weight_files
from tests.fixtures import official


@pytest.fixture(scope="module")
def checkpoint() -> official.Official:
    return official.load("var_square")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """Both official files under their official names."""
    folder = tmp_path_factory.mktemp("official")
    weight_files.write(folder / "var_d2.safetensors", checkpoint.transformer, {})
    weight_files.write(folder / "vae_ch160v4096z32.safetensors", checkpoint.tokenizer, {})
    return folder


@pytest.fixture(scope="module")
def generator(checkpoint, folder):
    """Finds its tokenizer beside it."""
    return pretrained.load_generator(folder / "var_d2.safetensors", grid_sizes=checkpoint.settings["patch_nums"])


def maps(flat, grid_sizes):
    parts = np.split(flat, np.cumsum(np.square(grid_sizes))[:-1], axis=1)
    return [part.reshape(-1, p, p) for part, p in zip(parts, grid_sizes, strict=True)]


def test_an_official_generator_gives_vars_numbers(checkpoint, generator):
    numbers, grids = checkpoint.numbers, checkpoint.settings["patch_nums"]
    tokens = generator.tokenizer.encode(np.moveaxis(numbers["image"], 1, -1))
    for got, expected in zip(tokens, maps(numbers["tokens"], grids), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(generator.logits(tokens, numbers["labels"]), numbers["logits"], atol=1e-4)
    drawn = generator.sample(numbers["labels"], cfg=1.5, top_k=1, top_p=0.0)
    for got, expected in zip(drawn.tokens, maps(numbers["greedy_tokens"], grids), strict=True):
        np.testing.assert_array_equal(got, expected)
    image = generator.tokenizer.decode(drawn.tokens)
    np.testing.assert_allclose((np.moveaxis(image, -1, 1) + 1) / 2, numbers["greedy_image"], atol=1e-4)
    assert generator.class_names == tuple("0123456789")


def test_mappings_are_loaded_as_files_are(checkpoint, generator):
    tokenizer = pretrained.load_tokenizer(checkpoint.tokenizer, grid_sizes=checkpoint.settings["patch_nums"])
    for given in (tokenizer, checkpoint.tokenizer):
        loaded = pretrained.load_generator(checkpoint.transformer, tokenizer=given, grid_sizes=(1, 2, 3, 4))
        assert loaded.network == generator.network and loaded.tokenizer.model == generator.tokenizer.model
        np.testing.assert_array_equal(loaded.params["blocks"]["qkv"], generator.params["blocks"]["qkv"])


def test_what_does_not_fit_together_is_named(checkpoint, folder, tmp_path):
    grids = checkpoint.settings["patch_nums"]
    with pytest.raises(FileNotFoundError, match="needs its tokenizer: put vae_ch160v4096z32.pth beside it"):
        pretrained.load_generator(checkpoint.transformer, grid_sizes=grids)
    other = official.load("var_ragged").tokenizer
    with pytest.raises(ValueError, match="vocab_size is 64 in the generator and 128 in the tokenizer"):
        pretrained.load_generator(checkpoint.transformer, tokenizer=other, grid_sizes=grids)
    with pytest.raises(ValueError, match="grid_sizes given for .*config says them already"):
        pretrained.load_tokenizer(str(tmp_path), grid_sizes=grids)


def test_sampling_out_of_range_is_refused_before_anything_is_computed():
    generator = pretrained.Generator(None, None, None, ())
    for name, value in (("top_p", 5), ("top_p", -1), ("cfg", float("inf")), ("cfg", float("nan")), ("top_k", -1)):
        with pytest.raises(ValueError, match=f"sampling.{name} is {value}; give"):
            generator.sample([0], **{name: value})
