"""Wrong settings that people may type: each is refused by name, before anything is compiled or written."""

import importlib
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import tiny
from refocus_jax.config import build, check
from refocus_jax.config.base import SETTINGS
from refocus_jax.data.records import SourceSettings
from refocus_jax.pretrained.prepare import prepare

BAD = [
    # geometry
    {"image_size": 60}, {"image_size": 0}, {"grid_sizes": (8,)}, {"grid_sizes": (1, 4, 2, 8)},
    {"grid_sizes": (0, 2, 4, 8)}, {"grid_sizes": (1, 2, 4, 7)},
    # optics
    {"focus.rho_max": 0.0}, {"focus.rho_max": -1.0}, {"focus.rho_max": float("nan")}, {"focus.rho_max": 1000.0},
    {"focus.psf": "dsk"}, {"focus.schedule": "cos"}, {"focus.downsample": "bicubic"}, {"focus.noise_first": -1.0},
    # tokenizers
    {"tokenizer.model.pyramid": "foo"}, {"tokenizer.model.residual": False, "tokenizer.model.pyramid": "var"},
    {"tokenizer.model.vocab_size": 0}, {"tokenizer.model.latent_channels": 0}, {"tokenizer.model.num_phi": -1},
    {"tokenizer.model.num_phi": 9}, {"tokenizer.model.norm_groups": 3}, {"tokenizer.model.norm_groups": 0},
    {"tokenizer.model.channel_multipliers": ()}, {"tokenizer.model.channel_multipliers": (1, 0, 1, 1)},
    {"tokenizer.model.num_residual_blocks": 0}, {"tokenizer.model.dtype": "float16"}, {"tokenizer.model.channels": 0},
    {"tokenizer.alias.vocab_size": 0}, {"tokenizer.alias.norm_groups": 7}, {"tokenizer.alias.channels": 0},
    {"tokenizer.alias.latent_channels": 0},
    # stage 1
    {"tokenizer.loss.l1": -1.0}, {"tokenizer.loss.view": float("inf")}, {"tokenizer.revival.every": 0},
    {"tokenizer.revival.stop_fraction": 2.0},
    {"tokenizer.adversarial.weight": -1.0}, {"tokenizer.adversarial.start": -1}, {"tokenizer.adversarial.cap": 0.0},
    {"tokenizer.discriminator.num_layers": 0}, {"tokenizer.discriminator.norm_groups": 5},
    {"tokenizer.train.batch_size": 0},
    {"tokenizer.train.batch_size": 7}, {"tokenizer.optimizer.learning_rate": -1.0}, {"tokenizer.optimizer.b1": 1.0},
    {"tokenizer.discriminator_optimizer.final": -1.0}, {"tokenizer.train.steps": 0}, {"tokenizer.train.log_every": 0},
    # stage 2
    {"generator.model.depth": 0}, {"generator.model.depth": 1}, {"generator.model.num_heads": 7},
    {"generator.model.num_heads": 0},
    {"generator.model.drop_path_rate": 1.0}, {"generator.model.dtype": "bf16"}, {"generator.train.label_dropout": 1.5},
    {"generator.train.batch_size": 0}, {"generator.train.batch_size": 3}, {"generator.optimizer.weight_decay": -1.0},
    {"generator.optimizer.clip": 0.0}, {"generator.optimizer.warmup": 2.0}, {"generator.train.keep": 0},
    {"generator.train.save_every": -3}, {"generator.train.skip_nonfinite": -1},
    {"generator.teacher.num_alias_blocks": 3}, {"generator.teacher.num_alias_scales": 4},
    {"generator.teacher.num_alias_scales": 0},
    {"generator.teacher.alias": "other"},
    {"generator.teacher.gate": "open"}, {"generator.teacher.logit_weight": -1.0},
    {"generator.teacher.feature_weight": float("nan")},
    {"generator.teacher.train_shared": True, "generator.teacher.share_weights": False},
    # sampling
    {"sampling.cfg": -1.0}, {"sampling.top_k": -1}, {"sampling.top_p": 1.5},
    {"generator.train.samples_per_class": 0}, {"sample.count": 0}, {"sample.format": "gif"}, {"edit.count": 0},
    {"edit.seed": -1},
    {"aliasing.images": 0}, {"demo.port": 0}, {"demo.port": 65536},
    # evaluation
    {"evaluate.count": 9}, {"evaluate.reference_count": 0}, {"evaluate.batch_size": 0}, {"evaluate.seed": -1},
    {"evaluate.during_training": 5}, {"evaluate.parts": ("student",)}, {"evaluate.parts": ()},
    # data
    {"data.source": "foto"}, {"data.source": "npz:/nowhere.npz"}, {"data.resize_ratio": -1.0},
    {"data.resize_ratio": 0.5}, {"data.validation_examples": 0}, {"data.token_examples": -1},
    {"data.token_examples": 8}, {"data.crops_per_image": 0}, {"data.num_classes": 1}, {"data.num_workers": -1},
    {"data.num_classes": 0}, {"data.class_depth": -1}, {"data.max_unreadable": 1.5}, {"data.sixteen_bit_max": 100},
    {"data.sixteen_bit_max": 65536},
    {"data.tokens": "/nowhere"}, {"tokenizer.model.vocab_size": 65537},
    {"encode.passes": 0}, {"encode.shard_size": 0}, {"encode.batch_size": -1},
    {"seed": -1},
    # scale
    {"mesh.data": 3}, {"mesh.fsdp": 5}, {"mesh.fsdp": -1}, {"mesh.data": 0}, {"tokenizer.train.microbatches": 0},
    {"tokenizer.train.microbatches": 3}, {"generator.train.microbatches": 5}, {"generator.train.ema_decay": 1.0},
    {"generator.model.remat": "all"},
    {"tokenizer.model.remat": "all"},
    # of another type than the setting
    {"image_size": 96}, {"grid_sizes": ()}, {"grid_sizes": (1.0, 2.0, 4.0, 8.0)}, {"grid_sizes": (1, 2, 4, True)},
    {"tokenizer.model.channel_multipliers": ("a", "b")}, {"tokenizer.model.channel_multipliers": (1.0, 1.0, 2.0, 2.0)},
    {"sampling.cfg": float("nan")}, {"sampling.cfg": float("inf")}, {"sampling.top_p": float("nan")},
    {"sampling.top_p": 5.0}, {"sample.seed": -1}, {"sample.classes": (1.5,)}, {"sample.batch_size": 0},
    {"plan.utilization": 0.0}, {"plan.programs": ()}, {"plan.optimization": "3"}, {"report.compare": (1,)},
    {"profile.steps": (20, 10)}, {"profile.steps": (0, 5)}, {"profile.steps": (10,)}, {"profile.steps": (1.0, 2.0)},
    {"tokenizer.optimizer.warmup": 1.1}, {"tokenizer.discriminator_optimizer.flat": 1.1},
    {"generator.optimizer.flat": -0.1},
    # from elsewhere
    {"tokenizer.pretrained": "/nowhere"}, {"generator.init_from": "/nowhere"}, {"tokenizer.pretrained": "/nowhere.pth"},
    {"generator.init_from": "/nowhere.safetensors"},
]
REMEDY = re.compile(r"\b(give|choose|change|set|take|correct|train|use|leave)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(16) % 2)

    def make(**changes):
        c = tiny.get_config()
        c.data.source = f"npz:{folder}/images.npz"
        c.update_from_flattened_dict(changes)
        return c

    return make


@pytest.fixture(scope="module")
def compiled():
    """A growing list of the seconds of all compilations."""
    seconds = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: seconds.append(duration) if "backend_compile" in event else None)
    jax.jit(lambda x: x * 3)(1.0)
    assert seconds
    return seconds


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_bad_settings_are_named_with_a_remedy(changes, config, tmp_path, compiled):
    before = len(compiled)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        prepare(config(**changes), str(tmp_path / "run"))
    name, value = next(iter(changes.items()))
    message = str(raised.value)
    assert name in message and str(value).strip("()") in message.replace("[", "(").replace("]", ")"), message
    assert REMEDY.search(message), message
    assert not (tmp_path / "run").exists() and sum(compiled[before:]) < 0.5  # at most a random key


def test_a_placebo_needs_another_image(config):
    c = config(**{"generator.teacher.alias": "class", "generator.train.microbatches": 16})
    check.check(c, 1)
    c.generator.train.microbatches = 32
    with pytest.raises(ValueError, match="generator.teacher.alias is 'class'.*give a larger batch"):
        check.check(c, 1)


def settings(c):
    return flatten_dict(c.to_dict(), sep=".")


@pytest.mark.parametrize("name", ["tiny", "d16", "d36_512"])
def test_every_setting_has_a_range(name):
    c = importlib.import_module(f"configs.{name}").get_config()
    assert settings(c).keys() == SETTINGS.keys()
    check.check_ranges(c)


# Values that no setting accepts, except that a placeholder may be None.
NO_VALUES = [float("nan"), float("inf"), -float("inf"), np.float32("nan"), None, "much", b"", [None], {}, object()]


@pytest.mark.parametrize("name", [name for name, value in settings(tiny.get_config()).items()
                                  if isinstance(value, int | float)])
def test_no_range_of_a_number_takes_what_is_not_one(name):
    limits, value = SETTINGS[name].range, settings(tiny.get_config())[name]
    assert not any(limits.fits(wrong) for wrong in NO_VALUES), name
    if isinstance(value, bool):
        assert not limits.fits(1) and limits.fits(not value)
    else:
        assert not limits.fits(True) and limits.fits(np.asarray(value)[()])
        assert isinstance(value, float) or not limits.fits(value + 0.5)


@pytest.mark.parametrize("name", [name for name, value in settings(tiny.get_config()).items()
                                  if isinstance(value, str | tuple)])
def test_no_range_of_text_or_of_several_takes_something_else(name):
    limits = SETTINGS[name].range
    for wrong in (float("nan"), None, 3, object(), [None], (object(),)):
        assert not limits.fits(wrong), (name, wrong)


def test_a_setting_that_is_missing_is_named(config):
    c = config().to_dict()
    del c["tokenizer"]["revival"]["every"]
    with pytest.raises(ValueError, match="tokenizer.revival.every is missing; give 1 or more .an integer."):
        check.check_ranges(ConfigDict(c))


@pytest.mark.parametrize("warmup, flat", [(0.0, 1.0), (1.0, 0.0), (0.02, 1.0), (0.6, 0.5), (1.0, 1.0)])
def test_flat_is_a_share_of_what_warmup_leaves(config, warmup, flat):
    """Their sum may be more than 1."""
    for section in ("tokenizer.optimizer", "tokenizer.discriminator_optimizer", "generator.optimizer"):
        check.check_ranges(config(**{f"{section}.warmup": warmup, f"{section}.flat": flat}))


def test_images_are_square_and_grids_that_fit_them_are_named(config):
    """The settings that an error suggests are accepted."""
    c = config().to_dict() | {"image_size": (64, 96)}
    with pytest.raises(ValueError, match=r"image_size is \(64, 96\); give .* all images are square"):
        check.check_ranges(ConfigDict(c))
    with pytest.raises(ValueError, match=r"choose grid_sizes that end with 12, such as \(2, 3, 6, 12\)"):
        build.tokenizer(config(image_size=96))
    with pytest.raises(ValueError, match="56 or 64 or another multiple of 8, with grid_sizes that end with 7, 8 or"):
        build.tokenizer(config(image_size=60))
    for size, grids in ((96, (2, 3, 6, 12)), (56, (1, 2, 4, 7))):
        assert build.tokenizer(config(image_size=size, grid_sizes=grids)).optics.image_size == size


# Settings that are text but not paths: decide when you add one.
NO_PATHS = {"focus.psf", "focus.schedule", "focus.downsample", "tokenizer.model.pyramid", "tokenizer.model.dtype",
            "tokenizer.model.remat", "generator.model.attention", "generator.model.dtype", "generator.model.remat",
            "generator.teacher.gate", "generator.teacher.alias", "sample.format", "focus.implementation",
            "generator.init_classes", "generator.architecture", "plan.optimization", "plan.topology", "export.format",
            "export.dtype", "export.license", "log.wandb", "edit.label"}


def test_home_is_expanded_in_every_setting_that_is_a_path(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = {name for name, value in settings(config()).items() if isinstance(value, str)}
    c = config(**dict.fromkeys(text, "~/x"), **{"report.compare": ("~/a", "runs/~b", "/c")})
    check.expand_paths(c)
    assert {name for name in text if settings(c)[name] == "~/x"} == NO_PATHS
    assert {settings(c)[name] for name in text - NO_PATHS} == {"/home/me/x"}
    assert c.report.compare == ("/home/me/a", "runs/~b", "/c")


IN_BUCKETS = {"data.tokens", "tokenizer.pretrained", "convert.output", "encode.output"}


def test_an_address_where_none_can_be_read_is_refused_with_the_name_of_the_setting(config):
    text = {name for name, value in settings(config()).items() if isinstance(value, str)}
    for name in text - NO_PATHS - IN_BUCKETS - {"data.source"}:
        with pytest.raises(ValueError, match=f"^{name} is 'gs://bucket/a'; give a path .*bucket must be mounted"):
            check.check_ranges(config(**{name: "gs://bucket/a"}))
    for name in IN_BUCKETS:
        check.check_ranges(config(**{name: "gs://bucket/a"}))
        for wrong in ("s3://bucket/a", "gs://bucket", "gs://bucket/a/", "gs://bucket/a.pth"):
            with pytest.raises(ValueError, match=f"^{name} is '{wrong}'; give a path as text, or gs://BUCKET/FOLDER"):
                check.check_ranges(config(**{name: wrong}))
    with pytest.raises(ValueError, match="^report.compare is .*; give a tuple of paths, .* .a bucket must be mounted"):
        check.check_ranges(config(**{"report.compare": ("gs://bucket/a",)}))


def test_a_source_in_a_bucket_must_have_been_converted(config):
    check.check_ranges(config(**{"data.source": "array_record:gs://bucket/images"}))
    for wrong in ("npz:gs://bucket/a.npz", "folder:gs://bucket/a", "gs://bucket/a", "array_record:s3://bucket/a",
                  "tfds:gs://bucket/a"):
        with pytest.raises(ValueError, match=f"^data.source is '{wrong}'; give .*convert other images .*or mount it"):
            check.check_ranges(config(**{"data.source": wrong}))


@pytest.mark.parametrize("given, expanded", [
    ("npz:~/a.npz", "npz:/home/me/a.npz"), ("folder:~/a b/", "folder:/home/me/a b/"), ("vgg16:~/v.pth",
    "vgg16:/home/me/v.pth"), ("inception:~/i.pth", "inception:/home/me/i.pth"), ("~", "/home/me"),
    ("tfds:imagenet2012", "tfds:imagenet2012"), ("box:1,2,3,4", "box:1,2,3,4"), ("validation", "validation"),
    ("npz:/data/~old/a.npz", "npz:/data/~old/a.npz"), ("", "")])
def test_home_is_expanded_where_a_path_begins(given, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert check.expand_path(given) == expanded


def test_good_settings_are_not_refused(config, tmp_path):
    for number, changes in enumerate([
            {}, {"focus.psf": "none"}, {"sampling.top_k": 5000}, {"tokenizer.adversarial.weight": 0.0},
            {"tokenizer.model.pyramid": "var", "tokenizer.model.residual": True}]):
        prepare(config(**changes), str(tmp_path / str(number)))


def test_settings_of_the_data_reach_the_source(config, tmp_path):
    run = prepare(config(**{"data.num_classes": 20}), str(tmp_path / "run")).run
    assert run.num_classes == len(run.validation.class_names) == 20
    changes = {"data.class_depth": 2, "data.max_unreadable": 0.5, "data.sixteen_bit_max": 4095}
    expected = SourceSettings(num_classes=None, class_depth=2, max_unreadable=0.5, sixteen_bit_max=4095)
    assert build.source_settings(config(**changes)) == expected
    assert build.reference_settings(config(**changes)).source_settings == expected


def test_a_bucket_is_not_a_workdir(config):
    with pytest.raises(ValueError, match="--workdir is gs://mine/run, which is not a directory; give one"):
        prepare(config(), "gs://mine/run")


@pytest.mark.parametrize("content", [b'{"image_size": 6', b"[]", b"\xff", b""])
def test_a_damaged_config_of_a_workdir_is_named_and_left_alone(config, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is damaged .*; remove it, and the command that wrote it makes"):
        prepare(config(), str(tmp_path))
    assert (tmp_path / "config.json").read_bytes() == content
    (tmp_path / "config.json").unlink()
    prepare(config(), str(tmp_path))
