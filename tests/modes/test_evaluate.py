"""`--mode=evaluate` on checkpoints, folders and files, with a small feature network."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from refocus_jax import pretrained
from refocus_jax.config import build
from refocus_jax.evaluation import metrics
from refocus_jax.evaluation.unfinished import Unfinished
from refocus_jax.judges import features
from refocus_jax.modes import evaluate, sample
from refocus_jax.pretrained import choice
from refocus_jax.pretrained.prepare import prepare
from tests.fixtures import extractor as small_extractor
from tests.fixtures import untrained


@pytest.fixture(scope="module")
def load_once():
    """Loads each generator once, to keep its compiled programs."""
    return functools.cache(pretrained.load_generator)


@pytest.fixture(autouse=True)
def quick(monkeypatch, load_once):
    monkeypatch.setattr(features, "load", small_extractor.load)
    monkeypatch.setattr(choice, "load_generator", load_once)


@pytest.fixture(scope="module")
def small(micro, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0,
             classes=np.array(["even", "odd"]))

    def make(**changes):
        c = micro()
        c.data.source = f"npz:{folder}/images.npz"
        c.evaluate.update(count=12, reference_count=16, batch_size=2)
        c.update_from_flattened_dict(changes)
        return c

    return make


@pytest.fixture(scope="module")
def start(small):
    """Makes a workdir with random parameters of both stages or only of stage 1."""
    def make(directory, stages=("tokenizer", "generator")):
        c = small()
        prepare(c, str(directory))
        tasks = {"tokenizer": build.tokenizer_task(c), "generator": build.generator_task(c, 2)}
        for stage in stages:
            untrained.save(directory, stage, tasks[stage])
        return str(directory)

    return make


@pytest.fixture(scope="module")
def workdir(start, tmp_path_factory):
    return start(tmp_path_factory.mktemp("run"))


def run(c, workdir, samples=None):
    c.evaluate.samples = samples or c.evaluate.samples
    evaluate.run(c, workdir)
    return json.loads(Path(workdir, "evaluation.json").read_text())


def test_a_workdir_is_evaluated_and_all_is_said(workdir, small, images, capsys):
    found = run(small(), workdir)
    tokenizer, generator = found["tokenizer"], found["generator"]
    assert {"psnr", "reconstruction_fd_efflite0", "structure_perplexity/scale_1", "structure_usage/all",
            "alias_perplexity/scale_2"} <= set(tokenizer) and "ssim" not in tokenizer
    assert list(generator) == ["fd_efflite0", "kid_efflite0", "kid_efflite0_standard_error", "precision", "recall",
                               "inception_score_efflite0", "inception_score_efflite0_standard_deviation",
                               "fd_efflite0_to_reconstructions"]
    assert all(np.isfinite(value) for part in (tokenizer, generator) for value in part.values())
    assert found["features"] == {"name": "efficientnet_lite0", "distance": "fd_efflite0", "source": "weights.pth",
                                 "sha256": "5" * 64}
    assert found["steps"] == {"tokenizer": 3, "generator": 3}
    assert found["samples"]["step"] == 3 and found["samples"]["count"] == 12
    assert found["samples"]["sampling"]["top_p"] == 0.95
    assert found["settings"]["evaluate"]["seed"] == 0 and found["reference"]["count"] == 16
    made_with = found["samples"]["made_with"]
    assert made_with["settings"]["dtype"] == "float32" and len(made_with["params"]["student"]) == 32
    assert found["packages"]["jax"] == jax.__version__ and set(found["packages"]) == {
        "jax", "jaxlib", "flax", "numpy", "pillow", "refocus_jax"}
    notes = " ".join(found["notes"])
    assert "not an FID" in notes and "224 x 224 by bicubic" in notes and "No SSIM" in notes
    printed = capsys.readouterr().out
    assert "fd_efflite0" in printed and "psnr" in printed and notes.split(".")[0] in printed

    # The tokenizer's own reconstructions of the held-out images.
    loaded = pretrained.load_tokenizer(workdir)
    x = images[::4]
    decoded = np.asarray(loaded.decode(loaded.encode(x / np.float32(127.5) - 1)))
    rounded = np.rint((decoded + 1) * 127.5) / 127.5 - 1
    assert tokenizer["psnr"] == pytest.approx(metrics.psnr(np.square(rounded - (x / 127.5 - 1)).mean((1, 2, 3))), 1e-3)
    tokens = np.concatenate([np.ravel(t) for t in loaded.encode(x / np.float32(127.5) - 1)])
    assert tokenizer["structure_usage/all"] == len(np.unique(tokens)) / 32


def test_a_second_call_computes_nothing_again(workdir, small, monkeypatch, capsys):
    before = run(small(), workdir)
    capsys.readouterr()
    monkeypatch.setattr(evaluate, "draw_into", None)
    monkeypatch.setattr(features.Extractor, "__call__", None)
    assert run(small(), workdir) == before
    said = [line for line in capsys.readouterr().out.splitlines() if ": found in " in line]
    assert [line.split()[0] for line in said] == ["reconstructions", "features", "samples", "features", "features"]
    with pytest.raises(TypeError):  # samples of another seed are others
        run(small(**{"evaluate.seed": 1}), workdir)


def test_a_workdir_that_has_moved_keeps_what_it_has(start, small, tmp_path, monkeypatch):
    before = run(small(), start(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(evaluate, "draw_into", None)
    monkeypatch.setattr(features.Extractor, "__call__", None)
    after = run(small(), str(tmp_path / "there"))
    assert after["generator"] == before["generator"] and after["tokenizer"] == before["tokenizer"]


def test_samples_that_have_changed_since_are_drawn_again(workdir, small, caplog):
    before = run(small(), workdir)
    path = Path(before["samples"]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes(100) + content[600:])
    assert run(small(), workdir) == before and path.read_bytes() == content
    assert "samples.npz has changed since it was drawn, and is drawn again" in caplog.text


@pytest.mark.parametrize("change", [
    {"network": {"num_heads": 4}}, {"network": {"dtype": jnp.bfloat16}},
    {"structure": {"quantizer": {"residual": True}}}, {"structure": {"pyramid": "var"}}, {"optics": {"rho_max": 2.0}}])
def test_equal_weights_in_other_networks_are_others(load_once, workdir, change):
    """Settings that the arrays do not contain are part of the names under which results are kept."""
    def changed(module, change):
        return dataclasses.replace(module, **{
            name: changed(getattr(module, name), value) if isinstance(value, dict) else value
            for name, value in change.items()})

    generator = load_once(workdir)
    tokenizer = dataclasses.replace(generator.tokenizer, model=changed(
        generator.tokenizer.model, {name: value for name, value in change.items() if name != "network"}))
    other = dataclasses.replace(generator, tokenizer=tokenizer, network=changed(
        generator.network, change.get("network", {})))
    assert other.identity != generator.identity
    assert (tokenizer.identity == generator.tokenizer.identity) == ("network" in change)
    same = dataclasses.replace(generator, network=changed(generator.network, {"remat": "blocks"}))
    assert same.identity == generator.identity


def test_the_samples_of_a_call_are_those_that_sample_draws(workdir, small, tmp_path):
    c = small(**{"sample.count": 12, "sample.format": "npz", "sample.batch_size": 12, "sample.output": str(tmp_path)})
    sample.run(c, workdir)
    path = run(c, workdir)["samples"]["path"]
    with np.load(path) as drawn, np.load(tmp_path / "samples.npz") as expected:
        np.testing.assert_array_equal(drawn["arr_0"], expected["arr_0"])
        np.testing.assert_array_equal(np.bincount(drawn["arr_1"]), [6, 6])
    again = run(small(), workdir, samples=str(tmp_path / "samples.npz"))
    whole = run(c, workdir)["generator"]
    assert whole.pop("fd_efflite0_to_reconstructions") > 0  # needs the tokenizer, which given images do not have
    assert again["generator"] == whole
    assert again["tokenizer"] == {} and again["samples"]["path"] == str(tmp_path / "samples.npz")


def test_a_kill_while_sampling_costs_one_batch(workdir, small, monkeypatch):
    c, add, drawn = small(**{"evaluate.seed": 5}), Unfinished.add, []
    before = Path(workdir, "evaluation.json").read_text()

    def add_two(self, batch):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(batch))
        add(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "add", add_two)
        with pytest.raises(KeyboardInterrupt):
            run(c, workdir)
    assert Path(workdir, "evaluation.json").read_text() == before
    monkeypatch.setattr(Unfinished, "add", lambda self, batch: (drawn.append(len(batch)), add(self, batch)))
    found = run(c, workdir)
    assert drawn == [4, 4, 4]
    shutil.rmtree(Path(found["samples"]["path"]).parent)
    assert run(c, workdir)["generator"] == found["generator"] and drawn == [4] * 6


def test_images_need_no_run(small, images, tmp_path, capsys):
    """A folder compared with ADM's file of moments, by Inception; numbers that need images are left out."""
    for i, image in enumerate(images[:20]):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    extracted = small_extractor.load("inception", None).apply(
        small_extractor.load("inception", None).params, images)
    np.savez(tmp_path / "adm.npz", **{
        name + suffix: value for suffix, a in (("", extracted.pool), ("_s", extracted.spatial))
        for name, value in (("mu", np.asarray(a, np.float64).mean(0)),
                            ("sigma", np.cov(np.asarray(a, np.float64), rowvar=False)))})
    c = small(**{"evaluate.features": "inception:weights.pth", "evaluate.reference": str(tmp_path / "adm.npz")})
    found = run(c, str(tmp_path / "empty"), samples=str(tmp_path / "images"))
    assert list(found["generator"]) == ["fid", "sfid", "inception_score", "inception_score_standard_deviation"]
    assert found["generator"]["fid"] > 0 and found["reference"]["count"] is None
    assert "The reference holds only means and covariances" in " ".join(found["notes"])
    assert "299 x 299" in capsys.readouterr().out

    np.savez(tmp_path / "same.npz", arr_0=images)
    c.evaluate.samples = str(tmp_path / "same.npz")
    found = run(c, str(tmp_path / "empty"))
    assert abs(found["generator"]["fid"]) < 1e-5 and abs(found["generator"]["sfid"]) < 1e-5
    c.evaluate.reference = str(tmp_path / "images")
    found = run(c, str(tmp_path / "empty"))
    assert found["generator"]["recall"] == 1.0 and found["reference"]["count"] == 20


def test_what_moves_distances_is_said_next_to_them(small, images, tmp_path, capsys):
    """Samples that were saved as JPEG, a reference of another size, few images: in output and in evaluation.json."""
    for i, image in enumerate(images[:20]):
        for name, saved in (("jpeg", image), ("large", np.repeat(image, 2, 0).repeat(2, 1))):
            path = tmp_path / name / f"{i:02d}.{'jpg' if name == 'jpeg' else 'png'}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(saved).save(path)
    c = small(**{"evaluate.reference": str(tmp_path / "large")})
    found = run(c, str(tmp_path / "empty"), samples=str(tmp_path / "jpeg"))
    printed = capsys.readouterr().out
    for note in ("Samples: 20 of 20 files are of formats that may lose detail (20 JPEG)",
                 "The Inception Score of 20 images is too low",
                 "Reference: 20 of 20 images are not 8 x 8 pixels and were cropped or resized to fit"):
        assert any(note in said for said in found["notes"]) and note in printed
    found = run(small(), str(tmp_path / "empty"), samples=str(tmp_path / "large"))
    assert "Samples are of 16 x 16 pixels, and the reference of 8 x 8" in found["notes"][-1]


def test_stage_2_is_told_of_a_wrong_reference_before_stage_1(small, tmp_path):
    c = small(**{"evaluate.during_training": 10, "evaluate.reference": "/nowhere"})
    with pytest.raises(FileNotFoundError, match="evaluate.reference is '/nowhere'"):
        prepare(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_alone_is_evaluated_alone(start, small, tmp_path):
    directory = start(tmp_path / "run", ["tokenizer"])
    found = run(small(), directory)
    assert found["tokenizer"] and not found["generator"]
    assert "No generator: stage 2 has no checkpoint yet." in found["notes"]
    with pytest.raises(FileNotFoundError):
        run(small(**{"evaluate.parts": ("generator",)}), directory)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"evaluate.count": 3}, ValueError, "evaluate.count is 3; give 10 or more"),
    ({"evaluate.samples": "/nowhere"}, FileNotFoundError, "evaluate.samples is /nowhere, but there is no such"),
    ({"evaluate.reference": "/nowhere"}, FileNotFoundError, "evaluate.reference is '/nowhere', which is neither"),
    ({"data.source": "npz:/nowhere"}, FileNotFoundError, "data.source is npz:/nowhere"),
    ({"image_size": 16}, ValueError, "image_size is 16, and the tokenizer's in .* is 8; give the config"),
    ({"sampling.top_p": 5.0}, ValueError, "sampling.top_p is 5"),
    ({"sampling.cfg": float("nan")}, ValueError, "sampling.cfg is nan"),
])
def test_what_is_wrong_is_named_before_work_begins(workdir, small, changes, error, message, monkeypatch):
    monkeypatch.setattr(features.Extractor, "__call__", None)
    monkeypatch.setattr(evaluate, "draw_into", None)
    with pytest.raises(error, match=message):
        evaluate.run(small(**changes), workdir)


def test_a_workdir_without_a_run_is_named(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="empty is not the workdir of a run: it does not exist; give the --wor"):
        evaluate.run(small(), str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
