"""Measures what fraction of the alias residual a small tokenizer can encode, and which network does it best.

    python -m benchmarks.alias_tokenizer --source=photos --steps=600

For each scale of `tiny`, it prints the fraction of held-out variance explained by 8 principal components of 8x8 patches
and by a k-means codebook of 128, both fitted on training patches, and by `tiny`'s alias tokenizer trained alone, with
linear patches and with VAR's convolutional autoencoder, with and without quantization. The results are in
docs/measurements/alias_tokenizer.md.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.cluster.vq import kmeans2

from configs import tiny
from refocus_jax.config import build
from refocus_jax.data import pipeline, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.models.quantizer import Codebook
from refocus_jax.models.tokenizer import AliasTokenizer, Autoencoder, to_unit_range
from refocus_jax.training import codebook
from refocus_jax.training.tokenizer_task import mse, straight_through

CODES, LATENTS = 128, 8


def patches(residual: np.ndarray, side: int = 8) -> np.ndarray:
    n, s, _, c = residual.shape
    cut = residual.reshape(n, s // side, side, s // side, side, c)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * c)


def linear_bounds(train: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """Returns the fractions of variance explained by LATENTS principal components and by CODES means."""
    power = np.square(held_out).sum()
    basis = np.linalg.svd(train, full_matrices=False)[2][:LATENTS]
    components = 1 - np.square(held_out - held_out @ basis.T @ basis).sum() / power
    codes, _ = kmeans2(train[:6000].astype(np.float64), CODES, minit="++", seed=0, iter=15)
    distance = np.square(held_out).sum(1)[:, None] - 2 * held_out @ codes.T + np.square(codes).sum(1)
    return components, 1 - distance.min(1).sum() / power


def train_alone(alias: AliasTokenizer, batches, steps: int, quantize: bool):
    """Trains with Adam on reconstruction and VQ loss, with the package's code revival."""
    optimizer = optax.adam(optax.linear_schedule(2e-3, 1e-4, steps), b2=0.99)

    def loss(params, residuals):
        def apply(method, *args):
            return alias.apply({"params": params}, *args, method=method)

        latents = apply("latents", residuals)
        tokens = [apply("nearest", latent) for latent in latents]
        codes = [apply("embed", t) for t in tokens]
        values = list(map(straight_through, codes, latents)) if quantize else latents
        errors = list(map(mse, apply("decode", values), residuals))
        fixed_codes, inputs = jax.lax.stop_gradient((codes, latents))
        total = sum(errors) + 0.25 * sum(map(mse, fixed_codes, latents)) + sum(map(mse, codes, inputs))
        return total / len(residuals), (errors, tokens, inputs)

    @jax.jit
    def step(params, opt_state, usage, number, residuals):
        gradient, (_, tokens, inputs) = jax.grad(loss, has_aux=True)(params, residuals)
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        usage = usage + codebook.count(tokens, CODES)
        due = (number % 50 == 0) & (number < 0.9 * steps)
        dead = due & ((usage == 0) | (number == 0))
        codes = codebook.revive(jax.random.fold_in(jax.random.key(1), number), params["codebook"]["embedding"], dead,
                                inputs)
        return {**params, "codebook": {"embedding": codes}}, opt_state, jnp.where(due, 0, usage)

    params = jax.jit(alias.init)(jax.random.key(0), next(batches)[0])["params"]
    opt_state, usage = optimizer.init(params), jnp.zeros((CODES,))
    for number in range(steps):
        params, opt_state, usage = step(params, opt_state, usage, number, next(batches))
    return params, jax.jit(lambda params, residuals: loss(params, residuals)[1][0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="photos")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    c = tiny.get_config()
    tokenizer = build.tokenizer(c)
    rule = CropRule(image_size=c.image_size)

    @jax.jit
    def residuals(image):
        return tokenizer.residuals(tokenizer.optics.views(to_unit_range(image)))

    def endless(batch_size):
        source = sources.load(arguments.source, "train")
        for batch in pipeline.training_batches(source, rule, batch_size=batch_size, seed=0):
            yield residuals(batch["image"])

    held_out_source = sources.load(arguments.source, "validation")
    crops = 32 if len(held_out_source) < 448 else 1
    held_out = [residuals(batch["image"]) for batch in pipeline.validation_batches(
        held_out_source, dataclasses.replace(rule, crops_per_image=crops), batch_size=64, limit=448)]
    many = endless(64)
    train = [next(many) for _ in range(24)]
    std = [np.concatenate([part[k] for part in train]).std() for k in range(len(train[0]))]
    for k in range(len(std)):
        components, means = linear_bounds(*(np.concatenate([patches(np.asarray(part[k])) for part in parts])
                                            for parts in (train, held_out)))
        print(f"scale {k + 1}: {LATENTS} principal components {components:.3f}, {CODES} means {means:.3f}")

    structure = tokenizer.structure.autoencoder
    networks = {"linear patches": tokenizer.alias.autoencoder,
                "VAR's convolutions": Autoencoder(channels=8, channel_multipliers=structure.channel_multipliers,
                                                  num_residual_blocks=1, latent_channels=LATENTS, norm_groups=4)}
    for name, network in networks.items():
        for quantize in (True, False):
            normalized = ([r / s for r, s in zip(part, std, strict=True)] for part in endless(8))
            alias = AliasTokenizer(autoencoder=network, codebook=Codebook(vocab_size=CODES, latent_channels=LATENTS))
            params, errors = train_alone(alias, normalized, arguments.steps, quantize)
            scaled = [[r / s for r, s in zip(part, std, strict=True)] for part in held_out]
            error = np.mean([errors(params, part) for part in scaled], axis=0)
            power = np.mean([[np.square(r).mean() for r in part] for part in scaled], axis=0)
            print(f"{name}, {'quantized' if quantize else 'not quantized'}: explained per scale "
                  + " ".join(f"{share:.3f}" for share in 1 - error / power), flush=True)


if __name__ == "__main__":
    main()
