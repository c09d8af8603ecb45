"""All shipped configs: parameter counts, and whole update steps traced at full size without computing."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.config import build, catalog

IMAGENET_CLASSES = 1000
# Millions of student parameters, docs/var_facts.md (the official sizes with V = 4096, the paper's with 8192).
SIZES = {"d12": (133.2, 136.3), "d16": (310.3, 314.5), "d20": (600.9, 606.2), "d24": (1033.4, 1039.7),
         "d30": (2010.0, 2017.9), "d36_512": (2353.9, 2363.3)}
CONFIGS = (*SIZES, "d16_1024", "small", "tiny")
# Each argument of a config, on the smallest one.
VARIANTS = ("k4", "residual", "var", "norefocus", "gaussian", "noteacher", "shared", "mvar", "mvar,var")


def config(name, argument=None):
    return importlib.import_module(f"configs.{name}").get_config(argument)


@functools.cache
def traced_tokenizer(name, argument=None):
    """Abstract state before and after one stage-1 update; configs with one tokenizer share the trace."""
    c = config(name, argument)
    task = build.tokenizer_task(c)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((2, c.image_size, c.image_size, 3), jnp.uint8)}
    return state, *jax.eval_shape(task.update, state, task.frozen_shapes, batch, jax.random.key(0))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("vocab_size", [4096, 8192])
def test_student_has_the_published_number_of_parameters(name, vocab_size):
    c = config(name)
    c.tokenizer.model.vocab_size = vocab_size
    task = build.generator_task(c, IMAGENET_CLASSES)
    state = jax.eval_shape(task.init, jax.random.key(0))
    millions = count(state.params["student"]) / 1e6
    assert round(millions, 1) == SIZES[name][vocab_size == 8192]


@pytest.mark.parametrize("name, argument, teacher", [("d12", "mvar", True), ("d16", "mvar", True),
                                                     ("d16", "mvar,var", False), ("d24", "mvar,k4", True),
                                                     ("tiny", "mvar", True)])
def test_students_of_mvar(name, argument, teacher):
    """They differ from the others in the architecture alone."""
    c, plain = config(name, argument), config(name, ",".join(a for a in argument.split(",") if a != "mvar"))
    assert c.generator.architecture == "mvar" and c.generator.teacher.enabled == teacher
    plain.generator.architecture = "mvar"
    assert c.to_json() == plain.to_json()
    assert build.student(c, IMAGENET_CLASSES).architecture == "mvar"


def test_sizes_that_mvar_does_not_have_are_refused():
    with pytest.raises(ValueError, match="argument 'mvar' is unknown"):
        config("d36_512", "mvar")
    c = config("d36_512")
    c.generator.architecture = "mvar"
    with pytest.raises(ValueError, match="generator.model.shared_modulation is True, .* set it False, or choose 'var'"):
        build.student(c, IMAGENET_CLASSES)


@pytest.mark.parametrize("name", [
    "tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("d16", "d36_512", "d16_1024"))])
def test_tokenizer_step_traces(name):
    before, after, values = traced_tokenizer(name)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), before) == jax.tree.map(lambda a: (a.shape, a.dtype), after)
    terms = ("reconstruction", "view", "vq", "alias_reconstruction", "alias_vq", "perceptual", "adversarial",
             "discriminator")
    assert {f"loss/{term}" for term in terms} <= set(values)
    assert all(value.shape == () for value in values.values())


@pytest.mark.parametrize("name", [
    name if name in ("d16", "tiny") else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS])
def test_generator_step_traces(name):
    c = config(name)
    task = build.generator_task(c, IMAGENET_CLASSES)
    state = jax.eval_shape(task.init, jax.random.key(0))
    tokenizer = build.tokenizer_task(c)
    frozen = jax.eval_shape(tokenizer.init, jax.random.key(0)).params
    length, alias = task.student.offsets[-1], task.student.offsets[-2]
    batch = {"structure": jax.ShapeDtypeStruct((2, length), jnp.int32),
             "alias": jax.ShapeDtypeStruct((2, alias), jnp.int32), "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    after, values = jax.eval_shape(task.update, state, frozen, batch, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), after)
    assert {"loss/cross_entropy", "loss/teacher_cross_entropy", "loss/logit", "loss/feature"} <= set(values)
    # The teacher's own parameters stay under the paper's 3 %, except for d12, where the base itself is small.
    if name in SIZES:
        share = count(state.params["teacher"]) / count(state.params["student"])
        assert share < (0.035 if name == "d12" else 0.03)


@pytest.mark.parametrize("argument", VARIANTS)
def test_every_argument_changes_the_config_and_builds(argument):
    c = config("d16", argument)
    assert c.to_json() != config("d16").to_json()
    assert (build.tokenizer(c).alias is not None) == c.generator.teacher.enabled
    build.generator_task(c, IMAGENET_CLASSES)


@pytest.mark.parametrize("name, batch, learning_rate, steps", [
    ("d12", 768, 3e-4, 333_637), ("d16", 768, 3e-4, 333_637), ("d20", 768, 3e-4, 417_046),
    ("d24", 768, 2.4e-4, 583_865), ("d30", 1024, 3.2e-4, 437_898), ("d36_512", 768, 2.4e-4, 583_865)])
def test_var_recipe_is_vars_batch_and_epochs(name, batch, learning_rate, steps):
    """1,281,167 images for 200 epochs (d12, d16), 250 (d20) or 350, at (1e-4, from d24 on 8e-5) per 256 examples."""
    plain, c = config(name), config(name, "var_recipe")
    assert c.generator.train.batch_size == batch and c.generator.train.steps == steps
    np.testing.assert_allclose(c.generator.optimizer.learning_rate, learning_rate, rtol=1e-6)
    assert plain.generator.train.steps == 400_000 and plain.generator.train.batch_size == 256


def test_arguments_combine_and_a_wrong_one_is_named():
    c = config("d16", "k4,noteacher")
    assert tuple(c.grid_sizes) == (2, 4, 8, 16) and not c.generator.teacher.enabled
    for same in ("noteacher,k4", "grids=k4,teacher=off", "teacher=off,k4", "k4,k4,noteacher"):
        assert config("d16", same).to_json() == c.to_json()
    for wrong in ("k5", "grids=k5", "grids", "recipe=fast", "smoke"):
        with pytest.raises(ValueError, match=f"argument {wrong!r} is unknown .the nearest is .*; choose from .*k4"):
            config("d16", f"k4,{wrong}")
    with pytest.raises(ValueError, match="give teacher as off and as on; give one of them"):
        config("d16", "var,teacher=on")


def test_an_argument_refines_an_earlier_one_whatever_their_order():
    for argument in ("scales=independent,pyramid=var", "pyramid=var,scales=independent"):
        c = config("d16", argument)
        assert (c.tokenizer.model.pyramid, c.tokenizer.model.residual) == ("var", False)


def test_configs_that_ship_are_found_by_name():
    assert catalog.shipped().keys() == set(CONFIGS)
    assert catalog.locate("tiny:smoke") == f"{catalog.shipped()['tiny']}:smoke"
    assert catalog.locate("my/tiny.py:smoke") == "my/tiny.py:smoke"
    assert catalog.load("d16:k4").to_json() == config("d16", "k4").to_json()
    assert catalog.load(str(catalog.shipped()["tiny"])).to_json() == config("tiny").to_json()
    with pytest.raises(ValueError, match="there is no config 'tinny' .the nearest is tiny.; give one of d12, "):
        catalog.load("tinny")


@pytest.mark.parametrize("changes, chosen", [
    ({}, {"tpu": "prefix", "gpu": "prefix", "cpu": "prefix"}),  # until the others have run on their own hardware
    ({"attention": "splash"}, {"tpu": "splash"}), ({"attention": "cudnn"}, {"gpu": "cudnn"})], ids=str)
def test_attention_suits_the_devices(changes, chosen):
    c = config("d16")
    c.generator.model.update(changes)
    assert {platform: build.student(c, 2, platform).attention for platform in chosen} == chosen
    for platform in chosen:
        assert build.generator_task(c, 2, platform).alias_head.attention == chosen[platform]


@pytest.mark.parametrize("changes, platform, message", [
    ({"attention": "flash"}, "tpu", "generator.model.attention is 'flash'; choose auto or one of"),
    ({"attention": "splash"}, "gpu", "'splash', which runs on TPUs, and the devices are GPUs; choose auto"),
    ({"attention": "cudnn"}, "cpu", "'cudnn', which runs on GPUs, and the devices are CPUs; choose auto"),
    ({"attention": "cudnn", "dtype": "float32"}, "gpu", "takes bfloat16 .* not generator.model.dtype 'float32' and "
                                                        "width"),
    ({"attention": "cudnn", "num_heads": 4}, "gpu", "head dimensions of at most 128 .* num_heads = 256")], ids=str)
def test_attention_that_does_not_suit_is_named(changes, platform, message):
    c = config("d16")
    c.generator.model.update(changes)
    with pytest.raises(ValueError, match=message):
        build.student(c, 2, platform)


def test_blur_of_the_paper():
    """K = 4 at 256 px: 12, 9, 3, 0 pixels; in proportion at 512."""
    assert build.tokenizer(config("d16", "k4")).optics.radii().round(6).tolist() == [12, 9, 3, 0]
    assert build.tokenizer(config("d36_512")).optics.radii()[0] == 24


def test_images_that_do_not_fit_the_grids_are_named():
    c = config("tiny")
    c.image_size = 128
    with pytest.raises(ValueError, match="image_size is 128, but grid_sizes .* give image_size 64"):
        build.tokenizer(c)
