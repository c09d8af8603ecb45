"""The networks and tasks of configs/ at 256 px, built without `refocus_jax.config`, which needs more packages.

tests/test_accelerator.py compares them with the configs. Initial values and learning rates are not those of the
configs: they cost nothing.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import abstract_random, random_like
from refocus_jax.focus import GRID_SIZES, Pyramid
from refocus_jax.judges import perceptual
from refocus_jax.models.autoencoder import PatchAutoencoder
from refocus_jax.models.bound import Bound
from refocus_jax.models.discriminator import PatchDiscriminator
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer
from refocus_jax.models.tokenizer import AliasTokenizer, Autoencoder, DualTokenizer, StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.sampling import decode
from refocus_jax.training import optimizer
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.generator_task import GeneratorTask, TeacherSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses, TokenizerTask

STEPS = 100_000  # of a run; only schedules depend on it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Sizes of all networks; the defaults are those of configs/d12.py to d24.py.

    Attributes:
      var10: The grids of the tokenizers, and of all students.
      k4: The grids of the second tokenizer of stage 1.
      channel_multipliers: Those of the structure tokenizer's levels.
      channels: Of its first level, of the alias tokenizer and of the discriminator.
      num_residual_blocks: Of each level of the structure tokenizer, and of the alias tokenizer.
      discriminator_layers: Strided layers of the discriminator.
      groups: Of every norm.
      vocab_sizes: Numbers of structure and alias codes.
      latent_channels: Lengths of structure and alias codes.
      head_dim: The width per head. A student has as many heads as blocks.
      num_classes: The number of classes.
      perceptual: The setting `tokenizer.perceptual_network`.
      dtype: The name of the type that all networks compute in.
      remat: What the backward passes of tokenizers and students compute again.
    """

    var10: tuple[int, ...] = GRID_SIZES["var10"]
    k4: tuple[int, ...] = GRID_SIZES["k4"]
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    channels: tuple[int, int, int] = (160, 256, 64)
    num_residual_blocks: int = 2
    discriminator_layers: int = 3
    groups: int = 32
    vocab_sizes: tuple[int, int] = (8192, 512)
    latent_channels: tuple[int, int] = (32, 16)
    head_dim: int = 64
    num_classes: int = 1000
    perceptual: str = "efficientnet_lite0"
    dtype: str = "bfloat16"
    remat: tuple[str, str] = ("products", "blocks")

    @property
    def plain(self) -> "Networks":
        """The same networks without recomputation, to count their FLOPs."""
        return dataclasses.replace(self, remat=("none", "none"))

    def tokenizer(self, grids: str = "var10") -> DualTokenizer:
        """Both tokenizers of stage 1."""
        sizes: tuple[int, ...] = getattr(self, grids)
        common = dict(num_residual_blocks=self.num_residual_blocks, norm_groups=self.groups,
                      dtype=jnp.dtype(self.dtype))
        autoencoder = Autoencoder(channels=self.channels[0], channel_multipliers=self.channel_multipliers,
                                  latent_channels=self.latent_channels[0], remat=self.remat[0], **common)
        optics = Pyramid(grid_sizes=sizes, stride=autoencoder.stride,
                         rho_max=12.0 * sizes[-1] * autoencoder.stride / 256)
        quantizer = MultiScaleQuantizer(grid_sizes=sizes, vocab_size=self.vocab_sizes[0],
                                        latent_channels=self.latent_channels[0], num_phi=4, residual=False)
        patches = PatchAutoencoder(channels=self.channels[1], latent_channels=self.latent_channels[1],
                                   stride=autoencoder.stride, **common)
        codebook = Codebook(vocab_size=self.vocab_sizes[1], latent_channels=self.latent_channels[1])
        return DualTokenizer(
            optics=optics, structure=StructureTokenizer(autoencoder=autoencoder, quantizer=quantizer, pyramid="focus"),
            alias=AliasTokenizer(autoencoder=patches, codebook=codebook), shared=False)

    def student(self, depth: int) -> Transformer:
        """The student of VAR's depth."""
        return Transformer(
            grid_sizes=self.var10, vocab_size=self.vocab_sizes[0], latent_channels=self.latent_channels[0],
            num_classes=self.num_classes, depth=depth, width=self.head_dim * depth, num_heads=depth,
            drop_path_rate=0.1 * depth / 24, remat=self.remat[1], dtype=jnp.dtype(self.dtype))

    def tokenizer_task(self, grids: str) -> TokenizerTask:
        """Stage 1."""
        tokenizer = self.tokenizer(grids)
        chosen = perceptual.choose(self.perceptual, tokenizer.optics.image_size, jnp.dtype(self.dtype))
        made = optimizer.make(optimizer.OptimizerSettings(learning_rate=1e-4), STEPS)
        return TokenizerTask(
            tokenizer=tokenizer, losses=TokenizerLosses(), revival=Revival(), optimizer=made, steps=STEPS,
            discriminator=PatchDiscriminator(channels=self.channels[2], num_layers=self.discriminator_layers,
                                             norm_groups=self.groups, dtype=jnp.dtype(self.dtype)),
            adversarial=AdversarialSettings(), discriminator_optimizer=made,
            perceptual=chosen.network if chosen else None)

    def generator_task(self, depth: int, teacher: bool = True) -> GeneratorTask:
        """Stage 2, with or without a teacher."""
        return GeneratorTask(tokenizer=self.tokenizer(), student=self.student(depth),
                             teacher=TeacherSettings(enabled=teacher),
                             optimizer=optimizer.make(optimizer.OptimizerSettings(learning_rate=1e-4), STEPS))

    def student_params(self, depth: int) -> Any:
        """Random parameters of a student."""
        student = self.student(depth)
        inputs = jnp.zeros((1, student.offsets[-1] - student.offsets[1], student.latent_channels))
        return abstract_random(student.init, jax.random.key(0), jnp.zeros((1,), jnp.int32), inputs)["params"]

    def tokenizer_params(self) -> Any:
        """Random parameters of both tokenizers, as stage 2 gets them."""
        params = abstract_random(self.tokenizer().init, jax.random.key(0))
        return params | {"residual_std": jnp.ones(len(self.var10) - 1)}

    def sampler(self, depth: int):
        """The function of both networks' parameters, labels and a seed that draws token maps and a latent."""
        student, quantizer = self.student(depth), self.tokenizer().structure.quantizer

        def draw(params, tokenizer_params, labels, seed):
            bound = Bound(quantizer, tokenizer_params["structure"]["quantizer"])
            drawn = decode.sample(Bound(student, params), bound, labels, decode.sample_keys(seed, labels),
                                  decode.SamplingSettings())
            return drawn.tokens, drawn.f_hat[-1]

        return draw

    def decoder(self):
        """The function of the tokenizers' parameters and a latent that makes images."""
        tokenizer = self.tokenizer()
        return lambda params, f_hat: tokenizer.decode_view(params, f_hat, len(tokenizer.grid_sizes) - 1)

    def images(self, batch: int, seed: int = 0) -> np.ndarray:
        """Random uint8 images."""
        side = self.tokenizer().optics.image_size
        return np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), np.uint8)

    def tokens(self, batch: int) -> dict[str, np.ndarray]:
        """A batch of random labels and tokens, as stage 2 reads it from a cache."""
        rng, offsets = np.random.default_rng(0), self.student(1).offsets
        lengths = {"structure": offsets[-1], "alias": offsets[-2]}
        return {"label": np.arange(batch, dtype=np.int32) % self.num_classes} | {
            name: rng.integers(0, vocab, (batch, length), np.int32)
            for (name, length), vocab in zip(lengths.items(), self.vocab_sizes, strict=True)}

    def state(self, task) -> Any:
        """A state of a task after some steps, when the adversarial loss has begun, with random parameters."""
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes.replace(params=None))
        changes = {"params": random_like(shapes.params), "step": state.step + AdversarialSettings.start + 1}
        if isinstance(task, TokenizerTask):
            changes["params"]["residual_std"] = jnp.ones_like(changes["params"]["residual_std"])
            changes["discriminator"] = random_like(shapes.discriminator)
        return state.replace(**changes)


# The same parts in the sizes of a test: 8 px images.
SMALL = Networks(
    var10=(1, 2, 4), k4=(2, 4), channel_multipliers=(1, 2), channels=(8, 8, 8), num_residual_blocks=1,
    discriminator_layers=1, groups=4, vocab_sizes=(32, 16), latent_channels=(8, 4), head_dim=4, num_classes=10,
    perceptual="none", dtype="float32")
