"""Stage 1 as a task of the training loop: both tokenizers, their losses, code revival and the discriminator."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from refocus_jax.focus.resample import resize
from refocus_jax.judges import perceptual, state_dict
from refocus_jax.judges.perceptual import FeatureNetwork
from refocus_jax.models.discriminator import PatchDiscriminator
from refocus_jax.models.randomness import fold_in
from refocus_jax.models.sharding import keep_divided
from refocus_jax.models.tokenizer import DualTokenizer, to_unit_range
from refocus_jax.training import adversarial, codebook
from refocus_jax.training.accumulation import mean_over_parts

STRUCTURE_CODES = ("structure", "quantizer", "codebook", "embedding")
ALIAS_CODES = ("alias", "codebook", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerLosses:
    """Weights of the terms of stage 1's loss (docs/method.md); 0 leaves a term out.

    Attributes:
      l1: Absolute pixel error.
      l2: Squared pixel error.
      view: Error between the decoded coarser latents and their views (focus pyramids).
      consistency: Difference between z_k and area(z_K) (residual focus pyramids).
      commitment: beta of the VQ loss.
      alias: All terms of the alias tokenizer.
      perceptual: Perceptual distance, only of the whole image; views may be too small for it.
    """

    l1: float = 0.2
    l2: float = 1.0
    view: float = 1.0
    consistency: float = 0.25
    commitment: float = 0.25
    alias: float = 1.0
    perceptual: float = 0.3


@flax.struct.dataclass
class TokenizerState:
    """Everything that stage 1 carries from step to step.

    Attributes:
      step: The number of updates so far.
      params: {"structure": ..., "alias": ..., "residual_std": (K - 1,)}, which later stages use.
      opt_state: The optimizer state of `params`.
      discriminator: The parameters of the discriminator, or None.
      discriminator_opt_state: The optimizer state of the discriminator, or None.
      usage: How often every code of each codebook was used since the last revival.
      residual_moment: The mean square of A_k over all steps so far, (K - 1,).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    discriminator: Any
    discriminator_opt_state: Any
    usage: Any
    residual_moment: Any


def straight_through(quantized: jax.Array, latent: jax.Array) -> jax.Array:
    """Returns exactly the quantized value, but with the gradient of the latent."""
    return jax.lax.stop_gradient(quantized) + (latent - jax.lax.stop_gradient(latent))


def mse(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the mean squared error."""
    return jnp.mean(jnp.square(a - b))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTask:
    """Trains a `DualTokenizer` on batches of uint8 `image`, by pure functions of (state, frozen, batch, key).

    `frozen` are the parameters of the perceptual network, or None if there is none.

    Attributes:
      tokenizer: The tokenizers.
      losses: The weights of the terms.
      revival: When unused codes are replaced.
      optimizer: The optimizer of the tokenizers.
      steps: The total number of steps.
      discriminator: The network of the adversarial loss.
      adversarial: The settings of the adversarial loss.
      discriminator_optimizer: The optimizer of the discriminator.
      perceptual: The network of the perceptual loss, used if `losses.perceptual` is not 0; or None.
      microbatches: The number of parts of a batch whose gradients are accumulated.
      name: The name of the stage.
    """

    tokenizer: DualTokenizer
    losses: TokenizerLosses
    revival: codebook.Revival
    optimizer: optax.GradientTransformation
    steps: int
    discriminator: PatchDiscriminator
    adversarial: adversarial.AdversarialSettings
    discriminator_optimizer: optax.GradientTransformation
    perceptual: FeatureNetwork | None = None
    microbatches: int = 1
    name: str = "tokenizer"

    @property
    def _has_alias(self) -> bool:
        return self.tokenizer.alias is not None

    @property
    def frozen_shapes(self) -> Any:
        """The shapes and dtypes of what `update` needs as `frozen`; None if it needs nothing."""
        if not self._has_perceptual:
            return None
        assert isinstance(self.perceptual, nn.Module)
        return state_dict.parameter_shapes(self.perceptual)

    @property
    def _has_perceptual(self) -> bool:
        return self.perceptual is not None and self.losses.perceptual > 0

    def init(self, key: jax.Array) -> TokenizerState:
        """Initializes the first state."""
        params = self.tokenizer.init(fold_in(key, "tokenizer"))
        size = self.tokenizer.optics.image_size
        discriminator, moment = None, None
        if self.adversarial.weight:
            image = jnp.zeros((1, size, size, 3))
            discriminator = self.discriminator.init(fold_in(key, "discriminator"), image)["params"]
        usage = {"structure": jnp.zeros((self.tokenizer.structure.quantizer.vocab_size,))}
        opt_state = self.optimizer.init(params)
        if self.tokenizer.alias is not None:
            moment = jnp.zeros((len(self.tokenizer.grid_sizes) - 1,))
            params["residual_std"] = jnp.ones_like(moment)
            if not self.tokenizer.shared:
                usage["alias"] = jnp.zeros((self.tokenizer.alias.codebook.vocab_size,))
        return TokenizerState(
            jnp.zeros((), jnp.int32), params, opt_state, discriminator,
            self.discriminator_optimizer.init(discriminator) if discriminator is not None else None, usage, moment)

    def _pixel_loss(self, image: jax.Array, target: jax.Array) -> jax.Array:
        difference = image - target
        return self.losses.l1 * jnp.abs(difference).mean() + self.losses.l2 * jnp.square(difference).mean()

    def _vq_loss(self, quantized: jax.Array, latent: jax.Array) -> jax.Array:
        commitment = self.losses.commitment * mse(jax.lax.stop_gradient(quantized), latent)
        return commitment + mse(quantized, jax.lax.stop_gradient(latent))

    def _structure_losses(self, params, image, views):
        """Computes the structure tokenizer's terms; returns them with quantization, decoder features and image."""
        structure, params = self.tokenizer.structure, params["structure"]

        def apply(method, *args):
            return structure.apply({"params": params}, *args, method=method)

        def network(method, *args):
            return structure.autoencoder.apply({"params": params["autoencoder"]}, *args, method=method)

        latents = apply("latents", [view.focused for view in views])
        quantized, last = apply("quantize", latents), len(latents) - 1
        features = network("features", straight_through(quantized.f_hats[-1], latents[-1]))
        reconstruction = network("head", features)
        terms = {"reconstruction": self._pixel_loss(reconstruction, image)}
        if structure.pyramid == "var":
            terms["vq"] = sum(self._vq_loss(f_hat, latents[-1]) for f_hat in quantized.f_hats) / (last + 1)
            return terms, quantized, features, reconstruction
        states = [apply("view", f_hat, scale) for scale, f_hat in enumerate(quantized.f_hats)]
        terms["vq"] = sum(map(self._vq_loss, states, latents)) / (last + 1)
        if self.losses.view:
            decoded = apply("decode_views", list(map(straight_through, states[:-1], latents[:-1])))
            terms["view"] = self.losses.view / last * sum(
                self._pixel_loss(d, view.focused) for d, view in zip(decoded, views[:-1], strict=True))
        if structure.quantizer.residual and self.losses.consistency:
            terms["consistency"] = self.losses.consistency * sum(
                mse(z, resize(latents[-1], z.shape[1], "area")) for z in latents[:-1])
        return terms, quantized, features, reconstruction

    def _alias_losses(self, params, residuals, std):
        """Computes the alias tokenizer's terms; returns them, and the tokens and quantizer inputs of every scale."""
        alias, params = self.tokenizer.alias, {"params": self.tokenizer.alias_params(params)}

        def apply(method, *args):
            return alias.apply(params, *args, method=method)

        targets = [residual / std[scale] for scale, residual in enumerate(residuals)]
        latents = apply("latents", targets)
        tokens = [apply("nearest", latent) for latent in latents]
        codes = [apply("embed", t) for t in tokens]
        decoded = apply("decode", list(map(straight_through, codes, latents)))
        weight = self.losses.alias / len(residuals)
        loss = {"alias_reconstruction": weight * sum(map(mse, decoded, targets)),
                "alias_vq": weight * sum(map(self._vq_loss, codes, latents))}
        return loss, tokens, jax.lax.stop_gradient(latents)

    def _perceptual_loss(self, frozen, image, reconstruction):
        """Computes the perceptual term and its gradient with respect to the reconstruction.

        The gradient is computed here once, because the adversarial weight needs it too. The term is returned in a form
        that has this gradient, so that the backward pass keeps no activations of the perceptual network.
        """
        value, gradient = jax.value_and_grad(lambda drawn: self.losses.perceptual * perceptual.distance(
            self.perceptual, frozen, drawn, image))(jax.lax.stop_gradient(reconstruction))
        return value + jnp.sum(gradient * straight_through(jnp.zeros_like(gradient), reconstruction)), gradient

    def _adversarial_loss(self, params, discriminator, image, features, slope):
        """Computes the adversarial term and its adaptive weight; `slope` is the perceptual term's gradient or None."""
        head = self.tokenizer.structure.autoencoder
        head_params = params["structure"]["autoencoder"]
        image, features, slope = jax.tree.map(keep_divided, (image, features, slope))

        def to_image(head_params, features):
            return head.apply({"params": head_params}, features, method="head")

        def reconstruct(drawn):
            loss = self._pixel_loss(drawn, image)
            return loss if slope is None else loss + jnp.sum(slope * drawn)

        def fool(image):
            return adversarial.generator_loss(self.discriminator.apply({"params": discriminator}, image))

        weight = adversarial.adaptive_weight(to_image, head_params, features, reconstruct, fool, self.adversarial.cap)
        # Recomputed in the backward pass: this runs in a branch of a conditional, and activations that a branch keeps
        # for the gradient would be gathered on every device.
        deceive = jax.checkpoint(lambda head_params, features: fool(to_image(head_params, features)))
        return self.adversarial.weight * weight * deceive(head_params, features), weight

    def loss(self, params, frozen, state: TokenizerState, image: jax.Array, key: jax.Array):
        """Computes the total loss of images in [-1, 1].

        Args:
          params: The parameters to train.
          frozen: The parameters of the perceptual network, or None.
          state: The state before the step.
          image: Images (b, h, w, 3).
          key: The key of the noise.

        Returns:
          The loss, and a tuple of its terms, other averages, and values of each example that `update` needs.
        """
        views = self.tokenizer.optics.views(image, key)
        terms, quantized, features, reconstruction = self._structure_losses(params, image, views)
        means, examples = {}, {"tokens": {"structure": quantized.tokens}, "inputs": {"structure": quantized.inputs},
                               "reconstruction": jax.lax.stop_gradient(reconstruction)}
        if self._has_alias:
            residuals = self.tokenizer.residuals(views)
            moment = jnp.stack([jnp.square(r).mean() for r in residuals])
            means["moment"] = state.residual_moment + (moment - state.residual_moment) / (state.step + 1)
            alias_terms, tokens, inputs = self._alias_losses(params, residuals, _deviation(means["moment"]))
            terms |= alias_terms
            examples["tokens"]["alias"], examples["inputs"]["alias"] = tokens, inputs
        slope = None
        if self._has_perceptual:
            terms["perceptual"], slope = self._perceptual_loss(frozen, image, reconstruction)
        if self.adversarial.weight:
            terms["adversarial"], means["adversarial_weight"] = jax.lax.cond(
                state.step >= self.adversarial.start,
                lambda: self._adversarial_loss(params, state.discriminator, image, features, slope),
                lambda: (jnp.zeros(()), jnp.zeros(())))
        return sum(terms.values()), (terms, means, examples)

    def _update_discriminator(self, state: TokenizerState, image, reconstruction):
        """Makes one step of the discriminator, if the adversarial loss has begun."""

        def loss(params, real, drawn):
            def logits(x):
                return self.discriminator.apply({"params": params}, x)
            return adversarial.discriminator_loss(logits(real), logits(drawn))

        def part_gradient(part, number):
            del number
            return jax.value_and_grad(loss)(state.discriminator, *map(keep_divided, part)), None

        def step():
            (value, gradient), _ = mean_over_parts(part_gradient, self.microbatches, (image, reconstruction))
            updates, opt_state = self.discriminator_optimizer.update(gradient, state.discriminator_opt_state,
                                                                     state.discriminator)
            return value, optax.apply_updates(state.discriminator, updates), opt_state

        return jax.lax.cond(state.step >= self.adversarial.start, step,
                            lambda: (jnp.zeros(()), state.discriminator, state.discriminator_opt_state))

    def _revive(self, params, opt_state, usage, stream: str, path: tuple[str, ...], examples, step, key):
        """Revives the unused codes of one codebook if it is time; returns what has changed and how many there were."""
        tokens = examples["tokens"][stream]
        inputs = examples["inputs"][stream]
        if stream == "structure" and self.tokenizer.shared and self._has_alias:
            tokens, inputs = tokens + examples["tokens"]["alias"], inputs + examples["inputs"]["alias"]
        usage = usage + codebook.count(tokens, usage.shape[0])
        due = (step % self.revival.every == 0) & (step < self.revival.stop_fraction * self.steps)
        dead = due & ((usage == 0) | (step == 0))
        embedding = params
        for name in path:
            embedding = embedding[name]
        params = _replace(params, path, codebook.revive(key, embedding, dead, inputs))
        opt_state = codebook.reset_moments(opt_state, path, dead)
        return params, opt_state, jnp.where(due, 0, usage), dead.sum()

    def update(self, state: TokenizerState, frozen, batch, key: jax.Array):
        """Makes one step on a batch of uint8 `image`; returns the new state and scalars for the log."""
        key = jax.random.fold_in(key, state.step)
        image = to_unit_range(batch["image"])
        trained = {name: value for name, value in state.params.items() if name != "residual_std"}

        def gradient(part, number):
            (total, (terms, means, examples)), gradient = jax.value_and_grad(self.loss, has_aux=True)(
                trained, frozen, state, part, jax.random.fold_in(fold_in(key, "noise"), number))
            return (terms | {"total": total}, means, gradient), examples

        (terms, means, gradient), examples = mean_over_parts(gradient, self.microbatches, image)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, trained)
        params, usage = optax.apply_updates(trained, updates), dict(state.usage)
        values = {f"loss/{name}": value for name, value in terms.items()}
        values |= {"gradient_norm": optax.tree.norm(gradient),
                   "latent_rms": jnp.sqrt(jnp.mean(jnp.square(examples["inputs"]["structure"][-1])))}
        for stream, path in (("structure", STRUCTURE_CODES), ("alias", ALIAS_CODES)):
            if stream in usage:
                params, opt_state, usage[stream], values[f"dead_codes/{stream}"] = self._revive(
                    params, opt_state, usage[stream], stream, path, examples, state.step,
                    fold_in(key, f"revival/{stream}"))
        changes = {"step": state.step + 1, "params": params, "opt_state": opt_state, "usage": usage}
        if self._has_alias:
            changes |= {"params": {**params, "residual_std": _deviation(means["moment"])},
                        "residual_moment": means["moment"]}
        if self.adversarial.weight:
            values["adversarial_weight"] = means["adversarial_weight"]
            values["loss/discriminator"], changes["discriminator"], changes["discriminator_opt_state"] = (
                self._update_discriminator(state, image, examples["reconstruction"]))
        return dataclasses.replace(state, **changes), values


def _deviation(moment: jax.Array) -> jax.Array:
    """Returns the standard deviation of the residuals, never 0."""
    return jnp.sqrt(moment) + 1e-8


def _replace(tree, path: tuple[str, ...], value):
    """Copies a nested dictionary with one leaf replaced."""
    return {**tree, path[0]: _replace(tree[path[0]], path[1:], value) if len(path) > 1 else value}
