"""Metrics of tokenizers and generators: errors of images, use of codes, cross-entropies of tokens, and intervals."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Wang et al. 2004: an 11 x 11 Gaussian window, and constants as shares of the range of values.
SSIM_WINDOW = 11
_SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 1.5, 0.01, 0.03


def psnr(squared_errors: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio in dB of images in [-1, 1], from the mean squared error of each image.

    The error is averaged over images before the logarithm, so that one easy image cannot raise the result much.
    """
    return float(10 * np.log10(4.0 / np.maximum(np.mean(squared_errors), 1e-12)))


@jax.jit
def ssim(a_bhwc: jax.Array, b_bhwc: jax.Array) -> jax.Array:
    """Compute the structural similarity of pairs of images, averaged over channels and complete windows.

    Args:
      a_bhwc: Images in [-1, 1].
      b_bhwc: Images of the same shape and range.

    Returns:
      The similarity (b,), at most 1.

    Raises:
      ValueError: If the images are smaller than the window of 11 pixels.
    """
    if min(a_bhwc.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"images for SSIM have {a_bhwc.shape[1:3]} pixels; give at least {SSIM_WINDOW} x "
                         f"{SSIM_WINDOW}")
    offsets = jnp.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = jnp.exp(-jnp.square(offsets / _SSIM_SIGMA) / 2)
    window = window / window.sum()

    def smooth(x):
        channels = x.shape[-1]
        for shape in ((SSIM_WINDOW, 1), (1, SSIM_WINDOW)):
            kernel = jnp.broadcast_to(window.reshape(*shape, 1, 1), (*shape, 1, channels))
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", feature_group_count=channels,
                                             dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                             precision=jax.lax.Precision.HIGHEST)
        return x

    mean_a, mean_b = smooth(a_bhwc), smooth(b_bhwc)
    variance_a, variance_b = smooth(a_bhwc**2) - mean_a**2, smooth(b_bhwc**2) - mean_b**2
    covariance = smooth(a_bhwc * b_bhwc) - mean_a * mean_b
    c1, c2 = (2 * _SSIM_K1) ** 2, (2 * _SSIM_K2) ** 2  # the range of values is 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                  / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)))
    return similarity.mean(axis=(1, 2, 3))


def perplexity(counts: np.ndarray) -> float:
    """Compute exp of the entropy of code counts (V,): the number of codes in use if all were used equally often."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def usage(counts: np.ndarray) -> float:
    """Compute the share of the codes that occur at least once, from code counts (V,)."""
    return float((counts > 0).mean())


def codebook_use(stream: str, counts_kv: np.ndarray) -> dict[str, float]:
    """Compute perplexity and usage of a stream's codebook, per scale and over all scales.

    Args:
      stream: "structure" or "alias".
      counts_kv: Counts of the codes for each scale, (scales, V).

    Returns:
      The metrics by name.
    """
    numbers = {}
    for name, counts in [*((f"scale_{k + 1}", counts) for k, counts in enumerate(counts_kv)),
                         ("all", np.sum(counts_kv, axis=0))]:
        numbers[f"{stream}_perplexity/{name}"] = perplexity(counts)
        numbers[f"{stream}_usage/{name}"] = usage(counts)
    return numbers


def unigram_cross_entropy(tokens: np.ndarray, labels: np.ndarray, train_tokens: np.ndarray, train_labels: np.ndarray,
                          offsets: Sequence[int], vocab_size: int) -> np.ndarray:
    """Compute the cross-entropy of a unigram model per scale and class, a baseline for generators.

    The model mixes the class's counts over the training tokens with the scale's counts over all classes, and these
    with the uniform distribution (Witten-Bell weights), so that no token has an unreasonably low probability.

    Args:
      tokens: Flat token maps (n, L) to predict.
      labels: Their classes (n,).
      train_tokens: Flat token maps (m, L) of the training set.
      train_labels: Their classes (m,).
      offsets: Offsets of the K scales in a token map, K + 1 numbers.
      vocab_size: Size of the vocabulary.

    Returns:
      The cross-entropy per scale, (K,), in nats per token.
    """
    result = []
    for start, stop in itertools.pairwise(offsets):
        all_counts = np.bincount(train_tokens[:, start:stop].reshape(-1), minlength=vocab_size).astype(np.float64)
        everywhere = _witten_bell(all_counts, np.full(vocab_size, 1 / vocab_size))
        total = 0.0
        for label in np.unique(labels):
            mine = train_tokens[train_labels == label, start:stop].reshape(-1)
            probability = _witten_bell(np.bincount(mine, minlength=vocab_size).astype(np.float64), everywhere)
            total -= np.log(probability[tokens[labels == label, start:stop]]).sum()
        result.append(total / (len(tokens) * (stop - start)))
    return np.array(result)


def _witten_bell(counts: np.ndarray, backoff: np.ndarray) -> np.ndarray:
    distinct = max((counts > 0).sum(), 1)
    return (counts + distinct * backoff) / (counts.sum() + distinct)


def unigram_entropy(tokens: np.ndarray, labels: np.ndarray, offsets: Sequence[int], vocab_size: int) -> np.ndarray:
    """Compute the entropy of tokens given their scale and class, from their own counts.

    The result is too low when a class has few tokens, so it flatters the unigram model.

    Args:
      tokens: Flat token maps (n, L).
      labels: Their classes (n,).
      offsets: Offsets of the K scales in a token map, K + 1 numbers.
      vocab_size: Size of the vocabulary.

    Returns:
      The entropy per scale, (K,), in nats per token.
    """
    result = []
    for start, stop in itertools.pairwise(offsets):
        total = 0.0
        for label in np.unique(labels):
            mine = tokens[labels == label, start:stop].reshape(-1)
            total += mine.size * np.log(perplexity(np.bincount(mine, minlength=vocab_size)))
        result.append(total / (len(tokens) * (stop - start)))
    return np.array(result)


def bootstrap_means(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """Compute the means (resamples, ...) of bootstrap samples of values (n, ...), drawn with replacement."""
    rng = np.random.default_rng(seed)
    return np.array([values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(resamples)])


def bootstrap_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Return the mean of independent values (n,), and the ends of its 95 % bootstrap interval."""
    low, high = np.percentile(bootstrap_means(values, seed, resamples), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
