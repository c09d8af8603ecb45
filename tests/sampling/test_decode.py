import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.bound import Bound
from refocus_jax.planning import collectives
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling import decode
from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import small

LABELS = np.asarray([1, 3, 0], np.int32)
MANY = np.full((1000,), 1, np.int32)
sample_keys = jax.jit(decode.sample_keys)


class Sampler:
    """A student and a quantizer with one set of parameters, and compiled functions of them."""

    def __init__(self, residual: bool = True, **settings):
        self.network, self.quantizer = small.transformer(**settings), small.quantizer(residual)
        self.params = small.transformer_params(self.network)
        self.quantizer_params = small.quantizer_params(self.quantizer)
        self.logits = jax.jit(self._logits)
        self.f_hats = jax.jit(lambda tokens: self.quantize("f_hats", tokens))
        self._sample = jax.jit(self._draw, static_argnums=3)
        self.layers = decode.unstack(self.params)

    def quantize(self, method, *args):
        return self.quantizer.apply({"params": self.quantizer_params}, *args, method=method)

    def _logits(self, labels, tokens):
        """Logits of all tokens, (b, L, V), computed without a cache."""
        inputs = self.quantize("generator_inputs", tokens)
        return self.network.apply({"params": self.params}, labels, inputs)[0]

    def _draw(self, params, labels, keys, settings, layers=None):
        return decode.sample(Bound(self.network, params), Bound(self.quantizer, self.quantizer_params), labels, keys,
                             settings, layers=layers)

    def sample(self, labels, keys, params=None, layers=None, **settings):
        settings = SamplingSettings(**{"cfg": 0.0, "top_k": 0, "top_p": 0.0} | settings)
        return self._sample(params or self.params, labels, keys, settings, layers)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler()


@pytest.mark.parametrize("settings", [{}, {"shared_modulation": True, "qk_norm": False},
                                      {"architecture": "mvar"}, {"architecture": "mvar", "qk_norm": False}], ids=str)
def test_cached_logits_are_the_teacher_forced_ones(settings, sampler):
    sampler = Sampler(**settings) if settings else sampler
    network, params, tokens = sampler.network, sampler.params, small.random_tokens(0, batch=3)

    @jax.jit
    def cached(labels, inputs):
        def net(method, *args):
            return network.apply({"params": params}, *args, method=method)

        (modulations, embedding), cache = net("conditions", labels), decode.init_caches(network, 3)
        logits = []
        for scale, (a, b) in enumerate(zip(network.offsets[:-1], network.offsets[1:], strict=True)):
            x = net("words", inputs[:, a - 1:b - 1], scale, 1) if scale else net("start", labels)
            x, cache = decode.decode_scale(Bound(network, params), None, x, modulations, cache, scale)
            logits.append(net("logits", x, embedding))
        return jnp.concatenate(logits, axis=1)

    inputs = jax.jit(lambda tokens: sampler.quantize("generator_inputs", tokens))(tokens)
    np.testing.assert_allclose(cached(LABELS, inputs), sampler.logits(LABELS, tokens), atol=2e-5)


@pytest.mark.parametrize("residual, cfg", [(True, 0.0), (False, 1.5)])
def test_greedy_sampling_is_an_argmax_loop_without_cache(residual, cfg, sampler):
    """cfg = 0 uses the conditional network alone; otherwise scale k is guided by cfg k / (K - 1)."""
    sampler = sampler if residual else Sampler(residual=False)
    result = sampler.sample(LABELS, sample_keys(0, LABELS), cfg=cfg, top_k=1)
    tokens = [np.zeros((3, p, p), np.int32) for p in small.GRIDS]
    for scale, p in enumerate(small.GRIDS):
        part = slice(small.OFFSETS[scale], small.OFFSETS[scale + 1])
        logits = np.asarray(sampler.logits(LABELS, tokens))[:, part]
        unconditional = np.asarray(sampler.logits(np.full_like(LABELS, small.CLASSES), tokens))[:, part]
        strength = cfg * scale / 2
        logits = (1 + strength) * logits - strength * unconditional
        tokens[scale] = logits.argmax(-1).reshape(3, p, p).astype(np.int32)
    for got, expected in zip(result.tokens, tokens, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def many(sampler):
    """Unfiltered samples of class 1, with seed 0."""
    return sampler.sample(MANY, sample_keys(0, MANY))


def test_samples(sampler, many):
    assert [t.shape for t in many.tokens] == [(len(MANY), p, p) for p in small.GRIDS]
    assert all(t.dtype == np.int32 and np.min(t) >= 0 and np.max(t) < small.VOCAB for t in many.tokens)
    for sampled, decoded in zip(many.f_hat, sampler.f_hats(many.tokens), strict=True):
        np.testing.assert_allclose(sampled, decoded, atol=1e-5)


def test_tokens_are_drawn_from_the_networks_distribution(sampler, many):
    """Compares frequencies of the first token in many samples with the probabilities of the first logits."""
    frequencies = np.bincount(np.ravel(many.tokens[0]), minlength=small.VOCAB) / len(MANY)
    logits = np.asarray(sampler.logits(LABELS, small.random_tokens(0, batch=3)))[0, 0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(frequencies, probabilities, atol=0.05)
    assert probabilities.max() > 0.1


def test_every_token_is_drawn_with_noise_of_its_own(sampler):
    """With equal logits, two tokens of a sample agree with probability 1 / V, also across scales."""
    indifferent = {**sampler.params, "head": jax.tree.map(np.zeros_like, sampler.params["head"])}
    sample = sampler.sample(MANY, sample_keys(0, MANY), indifferent)
    tokens = np.concatenate([np.reshape(t, (len(MANY), -1)) for t in sample.tokens], axis=1)
    agreement = np.mean(tokens[:, :, None] == tokens[:, None, :], axis=0)
    assert agreement[~np.eye(small.LENGTH, dtype=bool)].max() < 3 / small.VOCAB


def test_a_sample_depends_on_its_seed_number_and_label_alone(sampler, many):
    """Draws all samples at once, all from the fifth on, and one alone."""
    later = sampler.sample(MANY, sample_keys(0, MANY, start=5))
    label = MANY[7:8]
    alone = sampler.sample(label, sample_keys(0, label, start=7))
    for a, b, c in zip(many.tokens, later.tokens, alone.tokens, strict=True):
        np.testing.assert_array_equal(a[5:], b[:-5])
        np.testing.assert_array_equal(a[7:8], c)


def test_two_seeds_share_no_sample(sampler, many):
    """Within one class, two seeds share at most as many fine token maps as chance repeats within one seed."""
    def found(sample):
        return {row.tobytes() for row in np.reshape(sample.tokens[-1], (len(MANY), -1))}

    first = found(many)
    assert len(first) > 0.9 * len(MANY)
    for seed in (1, 2):
        assert len(first & found(sampler.sample(MANY, sample_keys(seed, MANY)))) < 0.1 * len(MANY)


def test_unrolled_layers_draw_the_same(sampler):
    """Compares a guided batch of 16 with the loop over stacked blocks at batch size 1."""
    labels = np.arange(16, dtype=np.int32) % small.CLASSES
    settings = dict(cfg=1.5, top_k=20, top_p=0.9)
    unrolled = sampler.sample(labels, sample_keys(3, labels), layers=sampler.layers, **settings)
    for i in (0, 7, 15):
        alone = sampler.sample(labels[i:i + 1], sample_keys(3, labels[i:i + 1], start=i), **settings)
        for many_tokens, tokens in zip(unrolled.tokens, alone.tokens, strict=True):
            np.testing.assert_array_equal(many_tokens[i:i + 1], tokens)


def test_mvar_keeps_states_alone_and_unrolled_layers_draw_the_same():
    sampler, labels = Sampler(architecture="mvar"), np.arange(8, dtype=np.int32) % small.CLASSES
    for cache in (decode.init_caches(sampler.network, 3), decode.init_caches(sampler.network, 3, sampler.layers)):
        assert {type(one).__name__ for one in cache} == {"State"}
    settings = dict(cfg=1.5, top_k=20, top_p=0.9)
    unrolled = sampler.sample(labels, sample_keys(3, labels), layers=sampler.layers, **settings)
    alone = sampler.sample(labels[6:7], sample_keys(3, labels[6:7], start=6), **settings)
    for many_tokens, tokens in zip(unrolled.tokens, alone.tokens, strict=True):
        np.testing.assert_array_equal(many_tokens[6:7], tokens)


def test_two_devices_draw_what_one_draws(sampler, many):
    """Divides the batch among the devices of the mesh."""
    shared = mesh_lib.put_batch(mesh_lib.make_mesh(), MANY)
    assert len(shared.sharding.device_set) == 2
    for a, b in zip(sampler.sample(shared, sample_keys(0, shared)).tokens, many.tokens, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("architecture", ["var", "mvar"])
def test_devices_that_share_a_guided_batch_exchange_nothing(architecture, sampler):
    sampler = sampler if architecture == "var" else Sampler(architecture=architecture)
    labels = mesh_lib.put_batch(mesh_lib.make_mesh(), np.arange(8, dtype=np.int32) % small.CLASSES)
    settings = SamplingSettings(cfg=1.5, top_k=0, top_p=0.0)
    lowered = sampler._sample.lower(sampler.params, labels, sample_keys(0, labels), settings)
    assert collectives.count(lowered.compile().as_text()) == {}


def test_sample_keys():
    def data(seed, labels, start=0):
        return list(map(tuple, jax.random.key_data(decode.sample_keys(seed, jnp.asarray(labels), start)).tolist()))

    assert data(5, [1, 3, 2, 1]) == data(5, [1, 3]) + data(5, [2, 1], start=2)
    assert data(jnp.uint32(2**32 - 1), [1], jnp.uint32(7)) == data(2**32 - 1, [1] * 8)[7:]
    # Neither neighbouring seeds nor neighbouring numbers nor labels have a key in common.
    keys = [key for seed in range(4) for label in range(4) for key in data(seed, [label] * 500)]
    assert len(set(keys)) == len(keys) == 4 * 4 * 500


def test_smoothing_feeds_back_a_mixture_of_codes(sampler, many):
    smooth = sampler.sample(MANY, sample_keys(0, MANY), smooth=True)
    assert jax.tree.map(np.shape, smooth) == jax.tree.map(np.shape, many)
    np.testing.assert_array_equal(smooth.tokens[0], many.tokens[0])  # nothing has been fed back yet
    for mixture, codes in zip(smooth.f_hat, sampler.f_hats(smooth.tokens), strict=True):
        assert np.abs(np.asarray(mixture) - np.asarray(codes)).max() > 1e-3


def test_settings_out_of_range_are_named():
    for cfg in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"sampling.cfg is {cfg}; give a finite number, 0"):
            SamplingSettings(cfg=cfg)
    for name, value in (("top_p", 5), ("top_p", -1), ("top_p", float("nan")), ("top_k", -1)):
        with pytest.raises(ValueError, match=f"sampling.{name} is {value}; give 0"):
            SamplingSettings(**{name: value})


def test_unstacked_blocks_share_the_memory_of_the_stacked():
    """Where it begins at a multiple of 64 bytes; elsewhere, and on several devices, they are copies."""
    kernel, bias = np.arange(3 * 64, dtype=np.float32).reshape(3, 16, 4), np.arange(15, dtype=np.float32).reshape(3, 5)
    stacked = jax.device_put({"blocks": {"kernel": kernel, "bias": bias}})
    layers = decode.unstack(stacked)
    begin = stacked["blocks"]["kernel"].unsafe_buffer_pointer()
    assert [layer["kernel"].unsafe_buffer_pointer() - begin for layer in layers] == [0, 256, 512]
    on_two = mesh_lib.put_whole(stacked, mesh_lib.replicated(mesh_lib.make_mesh()))
    for found in (layers, decode.unstack(on_two)):
        for index, layer in enumerate(found):
            np.testing.assert_array_equal(layer["kernel"], kernel[index])
            np.testing.assert_array_equal(layer["bias"], bias[index])
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(decode.unstack(on_two)))
