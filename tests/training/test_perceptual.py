"""Which network the perceptual loss takes, and what is said of settings and files that do not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models import state_dict, vgg
from refocus_jax.runtime import weight_files
from refocus_jax.training import perceptual


def test_efficientnet_lite0_is_there_for_everyone():
    chosen = perceptual.choose("efficientnet_lite0", 64, jnp.bfloat16)
    params, shapes = chosen.load(), state_dict.parameter_shapes(chosen.network)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    stages = jax.eval_shape(lambda p, x: chosen.network.apply({"params": p}, x, method="stages"), params,
                            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert [stage.shape[1] for stage in stages] == [32, 16, 8, 4, 2]
    assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}


def test_vgg16_comes_from_a_file(tmp_path):
    path, chosen = tmp_path / "vgg16.safetensors", perceptual.choose(f"vgg16:{tmp_path}/vgg16.safetensors", 64,
                                                                     jnp.float32)
    with pytest.raises(FileNotFoundError, match="vgg16.safetensors does not exist"):
        chosen.load()
    weight_files.write(path, {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, {})
    with pytest.raises(ValueError, match="vgg16.safetensors: the arrays are not those of Vgg16; missing: features.0."):
        chosen.load()
    assert isinstance(chosen.network, vgg.Vgg16)


def test_none_is_none():
    assert perceptual.choose("none", 8, jnp.float32) is None


@pytest.mark.parametrize(("setting", "message"), [
    ("vgg16", "perceptual is 'vgg16'; give efficientnet_lite0, vgg16:PATH or none"), ("vgg16:", "give efficientnet"),
    ("lpips", "give efficientnet"), ("", "give efficientnet"),
    ("vgg16:a.pth", "needs images of 16 pixels, and image_size is 8; set perceptual=efficientnet_lite0 or none")])
def test_other_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        perceptual.choose(setting, 8, jnp.float32)
