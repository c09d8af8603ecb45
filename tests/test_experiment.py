"""Both stages from a config, on every kind of local source, and what comes out of a workdir."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from refocus_jax import experiment, pretrained


@pytest.fixture(scope="module")
def small(micro, images, tmp_path_factory):
    """The micro config with its sizes of data cut, and an npz of random images to train on."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0,
             classes=np.array(["even", "odd"]))

    def make():
        c = micro()
        c.data.update(source=f"npz:{folder}/images.npz", validation_examples=8, crops_per_image=1, token_examples=32)
        c.samples_per_class = 2
        return c

    return make


@pytest.fixture(scope="module")
def workdir(small, tmp_path_factory):
    """A finished run."""
    directory = str(tmp_path_factory.mktemp("run"))
    experiment.train(small(), directory)
    return directory


def test_a_run_writes_what_the_readme_says(workdir):
    root = Path(workdir)
    assert json.loads((root / "config.json").read_text())["class_names"] == ["even", "odd"]
    for stage, names in (("tokenizer", ("focus_pyramid.png", "reconstructions.png")),
                         ("generator", ("samples.png", "focus_pull.png", "focus_pull.gif"))):
        assert {"metrics.jsonl", "evaluation.json", "checkpoints"} <= {p.name for p in (root / stage).iterdir()}
        assert list((root / stage).rglob("events.out.tfevents*"))
        for name in names:
            with Image.open(root / stage / "pictures" / name) as picture:
                assert np.asarray(picture.convert("L")).std() > 1
    with Image.open(root / "generator" / "pictures" / "focus_pull.gif") as animation:
        assert animation.n_frames == 3
    logged = [json.loads(line) for line in (root / "generator" / "metrics.jsonl").read_text().splitlines()]
    assert {"cross_entropy/scale_1", "accuracy/scale_3", "gradient_norm/student", "images_per_second"} <= set(logged[0])
    evaluation = json.loads((root / "generator" / "evaluation.json").read_text())
    assert {"validation/bits_per_image", "validation/below_unigram_cross_entropy",
            "validation/teacher_minus_student/low"} <= set(evaluation)
    evaluation = json.loads((root / "tokenizer" / "evaluation.json").read_text())
    assert {"validation/psnr_gain", "validation/view_psnr/scale_1", "validation/alias_explained/scale_2",
            "validation/structure_perplexity/all", "validation/alias_usage/scale_2"} <= set(evaluation)
    assert "psnr_gain" in experiment.summary(workdir) and "bits_per_image" in experiment.summary(workdir)


def test_loaded_tokenizer_encodes_and_decodes(workdir, images):
    tokenizer = pretrained.load_tokenizer(workdir)
    x = images[:4] / np.float32(127.5) - 1
    tokens = tokenizer.encode(x)
    assert [t.shape for t in tokens] == [(4, 1, 1), (4, 2, 2), (4, 4, 4)]
    image = tokenizer.decode(tokens)
    assert image.shape == (4, 8, 8, 3) and abs(image).max() <= 1
    assert tokenizer.decode(tokens, upto=2).shape == (4, 4, 4, 3)
    for arguments in ((tokens[:2],), (tokens, 0), (tokens, 4)):
        with pytest.raises(ValueError, match="token maps"):
            tokenizer.decode(*arguments)


def test_loaded_generator_samples_and_scores(workdir):
    generator = pretrained.load_generator(workdir)
    assert generator.class_names == ("even", "odd")
    drawn = generator.sample([0, 1, 1], seed=3, cfg=1.0, top_k=5)
    assert [t.shape for t in drawn.tokens] == [(3, 1, 1), (3, 2, 2), (3, 4, 4)]
    assert drawn.f_hat[-1].shape == (3, 4, 4, 4)
    logits = generator.logits(drawn.tokens, [0, 1, 1])
    assert logits.shape == (3, 21, 32) and np.isfinite(logits).all()
    alone = generator.sample([1], seed=5, cfg=1.0, top_k=5)
    assert all((a[0] == b[2]).all() for a, b in zip(alone.tokens, drawn.tokens, strict=True))
    with pytest.raises(ValueError, match="classes are 0 to 1"):
        generator.sample([3])


def test_a_finished_run_goes_through_again_unchanged(workdir, small):
    before = json.dumps(experiment.summary(workdir))
    experiment.train(small(), workdir)
    assert json.dumps(experiment.summary(workdir)) == before


def test_one_tokenizer_serves_another_generator(workdir, small, tmp_path):
    c = small()
    c.tokenizer_from = workdir
    c.data.token_examples = 0  # tokens made on the fly
    c.generator_training.steps = 2
    experiment.train(c, str(tmp_path))
    assert not (tmp_path / "tokenizer").exists()
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), pretrained.load_tokenizer(str(tmp_path)).params,
                                     pretrained.load_tokenizer(workdir).params))
    pretrained.load_generator(str(tmp_path))


def test_wrong_number_of_classes_is_named_before_anything_is_written(small, tmp_path):
    c = small()
    c.data.num_classes = 10
    with pytest.raises(ValueError, match="data.num_classes is 10, but npz:.* has 2 classes"):
        experiment.train(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        pretrained.load_tokenizer(str(tmp_path))
