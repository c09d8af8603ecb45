import jax
import numpy as np
import pytest

from refocus_jax.sampling import filters
from tests.fixtures import official, small

filter_logits = jax.jit(filters.filter_logits, static_argnums=(1, 2))
keep_likely = jax.jit(filters.keep_likely)


def kept(logits, top_k=0, top_p=0.0) -> np.ndarray:
    """Returns which tokens are left, and checks that their logits are unchanged."""
    filtered = np.asarray(filter_logits(np.asarray(logits, np.float32), top_k, top_p))
    left = np.isfinite(filtered)
    np.testing.assert_array_equal(filtered[left], np.asarray(logits, np.float32)[left])
    return left


def official_kept(logits, top_k, top_p) -> np.ndarray:
    """VAR's rule: in ascending order, tokens up to a cumulative probability of 1 - top_p go; the last one stays."""
    logits = np.asarray(logits, np.float64)
    if top_k:
        logits = np.where(logits < np.sort(logits, axis=-1)[..., -top_k, None], -np.inf, logits)
    left = np.isfinite(logits)
    if top_p:
        order = np.argsort(logits, axis=-1)
        probability = np.exp(np.take_along_axis(logits, order, -1))
        removed = np.cumsum(probability / probability.sum(-1, keepdims=True), axis=-1) <= 1 - top_p
        removed[..., -1] = False
        np.put_along_axis(left, order, np.take_along_axis(left, order, -1) & ~removed, axis=-1)
    return left


@pytest.mark.parametrize("top_k, top_p", [(7, 0.0), (0, 0.9), (0, 0.3), (20, 0.8), (64, 0.96), (1, 0.5), (0, 1e-6)])
def test_random_logits_are_filtered_as_var_does(top_k, top_p):
    logits = 3 * small.random(0, 8, 16, 64)
    np.testing.assert_array_equal(kept(logits, top_k, top_p), official_kept(logits, top_k, top_p))


@pytest.mark.parametrize("name", official.NAMES)
def test_official_filter_sets(name):
    numbers = official.load(name).numbers
    for top_k, top_p in ((0, 0.9), (17, 0.0), (30, 0.8)):
        np.testing.assert_array_equal(kept(numbers["filter_logits"], top_k, top_p),
                                      numbers[f"filter_allowed_k{top_k}_p{top_p}"])


def test_all_logits_equal_to_the_kth_are_kept():
    logits = [[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]
    assert kept(logits, top_k=1).tolist() == [[False, True, False, False, False, False]]
    assert kept(logits, top_k=2).tolist() == [[False, True, True, True, True, False]]
    assert kept(logits, top_k=4).tolist() == [[False, True, True, True, True, False]]
    assert kept(logits, top_k=5).tolist() == [[True, True, True, True, True, False]]


@pytest.mark.parametrize("top_p, number", [(0.499, 1), (0.501, 2), (0.749, 2), (0.751, 3), (0.874, 3), (0.876, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, number):
    logits = np.log([[1 / 8, 1 / 2, 1 / 16, 1 / 4, 1 / 32, 1 / 32]])
    expected = np.zeros((1, 6), bool)
    expected[:, np.argsort(-logits[0])[:number]] = True
    np.testing.assert_array_equal(kept(logits, top_p=top_p), expected)


def test_top_p_counts_probabilities_of_what_top_k_left():
    """1/2 of all is 4/7 of the first three: one of three tokens reaches 0.55, but it takes two of all five."""
    logits = np.log([[1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]])
    assert kept(logits, top_p=0.55).sum() == 2
    assert kept(logits, top_k=3, top_p=0.55).sum() == 1


def test_zero_switches_a_filter_off():
    logits = small.random(0, 2, 3, 64)
    assert kept(logits).all()
    assert (kept(logits, top_k=5).sum(-1) == 5).all()
    for all_of_them in (64, 900):
        np.testing.assert_array_equal(kept(logits, top_k=all_of_them, top_p=0.5), kept(logits, top_p=0.5))


def test_the_most_likely_token_always_stays():
    logits = [[0.0, 40.0, 1.0], [0.0, 0.0, 1e-3]]
    assert kept(logits, top_p=1e-9).tolist() == [[False, True, False], [False, False, True]]
    assert kept(logits, top_k=1, top_p=1e-9).tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize("top_k, top_p, message", [
    (-1, 0.0, "top_k is -1"), (0, 1.01, "top_p is 1.01"), (0, -0.1, "top_p is -0.1")])
def test_settings_out_of_range_are_named(top_k, top_p, message):
    with pytest.raises(ValueError, match=message):
        filters.filter_logits(np.zeros((1, 1, 8), np.float32), top_k, top_p)


def test_guidance_grows_from_nothing_to_cfg():
    assert [filters.guidance_scale(1.5, scale, 4) for scale in range(4)] == pytest.approx([0, 0.5, 1, 1.5])
    conditional, unconditional = small.random(0, 2, 3, 8), small.random(1, 2, 3, 8)
    np.testing.assert_array_equal(filters.guide(conditional, unconditional, 0.0), conditional)
    np.testing.assert_allclose(filters.guide(conditional, unconditional, 2.0) - conditional,
                               2 * (conditional - unconditional), atol=1e-5)


def test_where_1_is_unguided_the_ramp_goes_from_1_to_1_plus_cfg():
    conditional, unconditional = small.random(0, 2, 3, 8), small.random(1, 2, 3, 8)
    for scale, factor in ((0, 1.0), (3, 2.5)):
        guided = filters.guide(conditional, unconditional, filters.guidance_scale(1.5, scale, 4))
        np.testing.assert_allclose(guided, unconditional + factor * (conditional - unconditional), atol=1e-5)


def test_smoothing_is_a_mixture_that_sharpens_with_the_scale():
    logits = np.asarray(filter_logits(small.random(0, 2, 3, 64), 10, 0.0))
    gumbel = np.random.default_rng(0).gumbel(size=(2, 3, 64)).astype(np.float32)
    peaks = []
    for scale in range(4):
        mixture = np.asarray(filters.smoothing(logits, gumbel, scale, 4))
        np.testing.assert_allclose(mixture.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(mixture[~np.isfinite(logits)], 0)
        peaks.append(float(mixture.max(-1).mean()))
    assert peaks == sorted(peaks) and peaks[0] < 0.8 and peaks[-1] > 0.9


@pytest.mark.parametrize(("scale", "factor", "temperature"), [(0, 1.0, 0.27), (1, 1.5, 0.14175), (2, 2.0, 0.0135)])
def test_smoothing_has_vars_temperatures(scale, factor, temperature):
    """At three scales: logits times 1 + k / (K - 1), temperature max(0.27 (1 - 0.95 k / (K - 1)), 0.005)."""
    logits, gumbel = np.array([[[0.2, 0.1, 0.0]]], np.float32), np.array([[[0.0, 0.03, 0.1]]], np.float32)
    weights = np.exp((factor * logits + gumbel) / temperature)
    np.testing.assert_allclose(filters.smoothing(logits, gumbel, scale, 3), weights / weights.sum(), rtol=1e-4)


@pytest.mark.parametrize("top_k, top_p", [(7, 0.0), (0, 0.9), (20, 0.8), (64, 1.0), (1000, 0.5), (1, 0.0), (0, 0.0)])
def test_limits_that_are_arrays_keep_the_same(top_k, top_p):
    logits = 3 * small.random(0, 8, 16, 64)
    limits = filters.limits(top_k, top_p, 64)
    np.testing.assert_array_equal(keep_likely(logits, *limits), filter_logits(logits, top_k, top_p))
