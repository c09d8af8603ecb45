"""The FID network against numbers of its published PyTorch port, on weights that follow from a rule."""

import jax
import numpy as np
import pytest

from refocus_jax.judges import inception
from tests.fixtures import official


@pytest.fixture(scope="module")
def loaded():
    return official.load_inception()


@pytest.fixture(scope="module")
def numbers(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def arrays(loaded):
    return loaded[1]


@pytest.fixture(scope="module")
def run(numbers):
    apply = jax.jit(inception.InceptionV3(precision=jax.lax.Precision.HIGHEST).apply)
    pixels = numbers["image"].astype(np.float32)
    return lambda params: jax.device_get(apply({"params": params}, pixels))


@pytest.fixture(scope="module")
def params(arrays):
    return inception.from_state_dict(arrays)


@pytest.fixture(scope="module")
def found(run, params):
    return run(params)


@pytest.mark.parametrize(("name", "theirs"), [
    ("pool_64", "feature_64"), ("pool_192", "feature_192"), ("pool_768", "feature_768"), ("pool", "feature_2048"),
    ("logits", "feature_logits_unbiased")])
def test_features_are_those_of_the_port(found, numbers, name, theirs):
    np.testing.assert_allclose(getattr(found, name), numbers[theirs], atol=1e-4)
    assert np.abs(numbers[theirs]).max() > 1


def test_the_bias_that_logits_leave_out_is_the_files(found, arrays, numbers):
    np.testing.assert_allclose(found.logits + arrays["fc.bias"], numbers["feature_logits"], atol=1e-4)


def test_spatial_features_are_the_first_of_mixed_6d(run, params):
    """sFID's features are seven channels of mixed_6/conv in TensorFlow's graph, after ReLU."""
    changed = {"kernel": 0 * params["Mixed_6d"]["branch1x1"]["kernel"], "bias": np.arange(192, dtype=np.float32) - 2}
    spatial = run({**params, "Mixed_6d": {**params["Mixed_6d"], "branch1x1": changed}}).spatial
    assert spatial.shape == (3, 17, 17, 7)
    assert (spatial == np.array([0, 0, 0, 1, 2, 3, 4])).all()


def test_resize_begins_at_the_first_pixel_and_repeats_the_last():
    row = np.array([0.0, 10.0, 30.0], np.float32)
    resized = inception.resize(row[None, None, :, None], 6)[0, 0, :, 0]
    np.testing.assert_allclose(resized, [0, 5, 10, 20, 30, 30])


def test_other_files_are_refused_with_what_they_lack(arrays):
    others = {name: array for name, array in arrays.items() if name != "Mixed_6e.branch_pool.bn.running_var"}
    others["fc.weight"] = np.zeros((1000, 2048), np.float32)  # torchvision's
    with pytest.raises(ValueError, match=r"missing: Mixed_6e.branch_pool.bn.running_var; of another shape: "
                                         r"fc.weight \(1000, 2048\) instead of \(1008, 2048\)"):
        inception.from_state_dict(others)
