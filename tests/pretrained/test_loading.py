"""Official checkpoints as files and mappings; workdirs are tested in modes/test_train.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refocus_jax import pretrained
from refocus_jax.models import official_var
from refocus_jax.runtime import weight_files
from tests.fixtures import official, small, workdirs

ROOT = Path(__file__).parents[2]


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
    """The tokenizer is found in the same folder."""
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
    drawn = generator.sample(numbers["labels"], 0, pretrained.SamplingSettings(cfg=1.5, top_k=1, top_p=0.0))
    for got, expected in zip(drawn.tokens, maps(numbers["greedy_tokens"], grids), strict=True):
        np.testing.assert_array_equal(got, expected)
    image = generator.tokenizer.decode(drawn.tokens)
    np.testing.assert_allclose((np.moveaxis(image, -1, 1) + 1) / 2, numbers["greedy_image"], atol=1e-4)
    assert generator.class_names == tuple("0123456789")


def test_an_official_mvar_is_told_by_its_names(tmp_path):
    settings, numbers, tokenizer, transformer = official.load("mvar_square")
    weight_files.write(tmp_path / "mvar_d2.safetensors", transformer, {})
    grids = settings["patch_nums"]
    loaded = pretrained.load_generator(tmp_path / "mvar_d2.safetensors", grid_sizes=grids, tokenizer=tokenizer)
    assert loaded.network.architecture == "mvar" and loaded.network.qk_norm
    logits, expected = loaded.logits(maps(numbers["tokens"], grids), numbers["labels"]), numbers["logits"]
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    without = {name: array for name, array in transformer.items() if not name.endswith("scale_mul_1H11")}
    assert not official_var.infer_transformer(without, grids).qk_norm


def test_mappings_are_loaded_as_files_are(checkpoint, generator):
    tokenizer = pretrained.load_tokenizer(checkpoint.tokenizer, grid_sizes=checkpoint.settings["patch_nums"])
    for given in (tokenizer, checkpoint.tokenizer):
        loaded = pretrained.load_generator(checkpoint.transformer, tokenizer=given, grid_sizes=(1, 2, 3, 4))
        assert loaded.network == generator.network and loaded.tokenizer.model == generator.tokenizer.model
        np.testing.assert_array_equal(loaded.params["blocks"]["qkv"], generator.params["blocks"]["qkv"])


def test_what_does_not_fit_together_is_named(checkpoint, folder, tmp_path):
    grids = checkpoint.settings["patch_nums"]
    with pytest.raises(FileNotFoundError, match="needs its tokenizer: put vae_ch160v4096z32.pth next to it"):
        pretrained.load_generator(checkpoint.transformer, grid_sizes=grids)
    other = official.load("var_ragged").tokenizer
    with pytest.raises(ValueError, match="vocab_size is 64 in the generator and 128 in the tokenizer"):
        pretrained.load_generator(checkpoint.transformer, tokenizer=other, grid_sizes=grids)
    with pytest.raises(ValueError, match="grid_sizes given for .*config says them already"):
        pretrained.load_tokenizer(str(tmp_path), grid_sizes=grids)


def test_a_training_state_brings_its_own_tokenizer(checkpoint, generator, tmp_path, monkeypatch):
    path, asked = tmp_path / "ar-ckpt-last.pth", []
    path.touch()
    held = {official_var.is_transformer: checkpoint.transformer, official_var.is_tokenizer: checkpoint.tokenizer}
    monkeypatch.setattr(weight_files, "read", lambda source, fits: (asked.append(str(source)), held[fits])[1])
    for source in (str(path), f"{path}#trainer.var_wo_ddp"):
        loaded = pretrained.load_generator(source, grid_sizes=checkpoint.settings["patch_nums"])
        assert loaded.tokenizer.digests == generator.tokenizer.digests and asked[-2:] == [source, str(path)]


def test_the_front_door_imports_only_what_decoding_needs():
    """The data pipeline, checkpoints, metrics and charts are imported where they are used."""
    code = "import sys; from refocus_jax import pretrained; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code],
                           check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    needless = {"grain", "orbax", "matplotlib", "tensorflow_datasets", "tensorboardX", "ml_collections", "clu"}
    assert not needless & {name.partition(".")[0] for name in found}


@pytest.fixture(scope="module", params=["focus", "residual", "official"])
def editor(request) -> pretrained.Generator:
    if request.param == "official":  # VAR's pyramid; its optics do not blur
        return request.getfixturevalue("generator")
    model, network = small.tokenizer(residual=request.param == "residual", alias=False), small.transformer()
    tokenizer = pretrained.Tokenizer(model=model, params=small.tokenizer_params(model))
    return pretrained.Generator(network=network, params=small.transformer_params(network), tokenizer=tokenizer,
                                class_names=tuple("abcde"))


def test_what_is_hidden_does_not_matter_in_an_edit(editor):
    """A third of one image, thin lines of the other."""
    size = editor.tokenizer.model.optics.image_size
    image, mask = np.tanh(small.random(0, 2, size, size, 3)), np.zeros((2, size, size), bool)
    mask[0, :, :size // 3], mask[1, ::4, ::2] = True, True
    edited = np.asarray(editor.edit(image, mask, [1, 0], seed=3))
    assert np.isfinite(edited).all()
    for hidden in (-1, 1, np.nan, 255 * small.random(1, 2, size, size, 3)):
        changed = np.where(mask[..., None], hidden, image)
        np.testing.assert_array_equal(editor.edit(changed, mask, [1, 0], seed=3), edited)


def test_an_edit_of_nothing_or_all_of_an_image(editor):
    """The tokenizer's reconstruction, or a sample if nothing of the image is known."""
    size = editor.tokenizer.model.optics.image_size
    image, mask = np.tanh(small.random(0, 2, size, size, 3)), np.zeros((2, size, size), bool)
    mask[1], image[1] = True, np.nan
    edited = np.asarray(editor.edit(image, mask, [1, 0], seed=3))
    own = editor.tokenizer.decode(editor.tokenizer.encode(np.nan_to_num(image)))
    np.testing.assert_allclose(edited[0], own[0], atol=1e-6)
    drawn = editor.images(editor.sample([1, 0], seed=3))
    np.testing.assert_allclose(edited[1], drawn[1], atol=1e-4)


def test_known_pixels_of_an_edit_are_checked(generator):
    size = generator.tokenizer.model.optics.image_size
    image, mask = np.zeros((1, size, size, 3), np.float32), np.zeros((1, size, size), bool)
    for wrong in (np.nan, 255):
        image[0, 0, 0] = wrong
        with pytest.raises(ValueError, match="image ranges over .* outside the mask; give numbers in"):
            generator.edit(image, mask, [0])


def test_a_workdir_without_config_is_told_from_what_is_not_there(tmp_path):
    for path, lacks in ((tmp_path, "it has no config.json"), (tmp_path / "nothing", "it does not exist")):
        for load in (pretrained.load_tokenizer, pretrained.load_generator):
            with pytest.raises(FileNotFoundError, match=f"{path} is not the workdir of a run: {lacks}; give the"):
                load(str(path))


@pytest.mark.parametrize("change, message", [
    (lambda text: text[:len(text) // 2], "config.json is damaged .*; remove it"),
    (lambda text: "[]", "config.json is damaged .*instead of an object.*; remove it"),
    (lambda text: "{}", r"config.json is damaged \(it lacks class_names\); remove it"),
    (lambda text: text.replace("class_names", "classes"), r"it lacks class_names\); remove it"),
    (lambda text: text.replace('"vocab_size": 1024', '"vocab_size": 0'),
     "config.json is damaged .tokenizer.model.vocab_size is 0; give 1 or more.*; correct it, or remove it"),
])
def test_a_damaged_config_is_named_with_a_remedy(tmp_path, change, message):
    workdirs.write(tmp_path, stages=())
    assert pretrained.load_config(str(tmp_path))[1] == tuple(workdirs.CLASSES)
    path = tmp_path / "config.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        pretrained.load_config(str(tmp_path))


def test_sampling_out_of_range_is_refused_before_anything_is_computed():
    for name, value in (("top_p", 5), ("top_p", -1), ("cfg", float("inf")), ("cfg", float("nan")), ("top_k", -1)):
        with pytest.raises(ValueError, match=f"sampling.{name} is {value}; give"):
            pretrained.SamplingSettings(**{name: value})
