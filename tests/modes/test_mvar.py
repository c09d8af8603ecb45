"""A run with M-VAR as the student behind random tokenizers, through the modes that a student goes through."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from refocus_jax import pretrained
from refocus_jax.config import build
from refocus_jax.modes import export, report, train
from tests.fixtures import untrained
from tests.modes.test_train import RELOAD


@pytest.fixture(scope="module")
def small(micro, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0,
             classes=np.array(["even", "odd"]))

    def make(argument="mvar"):
        c = micro(argument)
        c.data.source = f"npz:{folder}/images.npz"
        c.generator.model.update(width=32, depth=2)
        c.tokenizer.train.steps = 3  # of an untrained tokenizer
        c.generator.train.update(steps=2, save_every=1, evaluate_every=2)
        return c

    return make


@pytest.fixture(scope="module")
def workdir(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    untrained.save(directory, "tokenizer", build.tokenizer_task(small()))
    train.run_generator(small(), str(directory))
    return str(directory)


@pytest.fixture(scope="module")
def generator(workdir):
    return pretrained.load_generator(workdir)


def test_a_run_says_which_student_it_has(workdir, generator):
    assert generator.network.architecture == "mvar" and "mixer" in generator.params["blocks"]
    assert pretrained.load_config(workdir)[0].generator.architecture == "mvar"


def test_another_student_does_not_go_on_there(workdir, small):
    c = small(None)
    with pytest.raises(ValueError, match="generator.architecture was 'mvar' and is 'var'"):
        train.run(c, workdir)


def test_images_of_a_workdir(generator):
    drawn = generator.sample([0, 1, 1, 0], 3)
    again = generator.sample([1, 0], 3, start=2)
    for tokens, rest in zip(drawn.tokens, again.tokens, strict=True):
        np.testing.assert_array_equal(tokens[2:], rest)
    assert generator.images(drawn).shape == (4, 8, 8, 3)
    image, mask = np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8), bool)
    mask[:, :, 4:] = True
    painted = np.asarray(generator.edit(image, mask, [0, 1]))
    own = np.asarray(generator.tokenizer.decode(generator.tokenizer.encode(image)))
    np.testing.assert_array_equal(painted[:, :, :4], own[:, :, :4])


@pytest.mark.usefixtures("unmeasured")
def test_export_and_back(workdir, small, generator, tmp_path, capsys):
    c, out = small(), tmp_path / "student.safetensors"
    c.export.update(output=str(out), allow_differences=True)
    export.run(c, workdir)
    assert "var = M-VAR's transformer (num_classes=2, depth=2" in capsys.readouterr().out
    back = pretrained.load_generator(out, tokenizer=generator.tokenizer)
    assert back.network.architecture == "mvar" and back.network.qk_norm
    jax.tree.map(np.testing.assert_array_equal, back.params, generator.params)
    c = small("mvar,var")
    c.generator.init_from, c.tokenizer.pretrained = str(out), str(out.with_name("student_tokenizer.safetensors"))
    c.generator.optimizer.learning_rate = 0.0
    train.run(c, str(tmp_path / "on"))
    started = pretrained.load_generator(str(tmp_path / "on"))
    jax.tree.map(np.testing.assert_array_equal, started.params, generator.params)
    c = small("var")
    c.generator.init_from, c.tokenizer.pretrained = str(out), str(out.with_name("student_tokenizer.safetensors"))
    with pytest.raises(ValueError, match="generator.architecture is 'mvar', the config's 'var'"):
        train.run(c, str(tmp_path / "other"))


def test_an_exported_sampler_draws_the_same_in_another_process(workdir, small, generator, tmp_path):
    path, drawn = str(tmp_path / "sampler.zip"), str(tmp_path / "drawn.npz")
    c = small()
    c.export.update(format="sampler", output=path, batch_size=2)
    export.run(c, workdir)
    subprocess.run([sys.executable, "-c", RELOAD, path, drawn], check=True, cwd=Path(__file__).parents[2])
    settings = pretrained.SamplingSettings(top_k=c.sampling.top_k, top_p=c.sampling.top_p)
    with np.load(drawn) as arrays:
        for scale, tokens in enumerate(generator.sample([1, 0], 3, settings, start=2).tokens):
            np.testing.assert_array_equal(arrays[f"arr_{scale}"], tokens)


def test_a_report_of_the_run(workdir, small):
    report.run(small(), workdir)
    assert list(Path(workdir).rglob("*.html"))
