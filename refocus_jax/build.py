"""From a config to models, tasks and settings; nothing is read or written."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from refocus_jax.data.sources import SourceSettings
from refocus_jax.evaluation import features, measurements
from refocus_jax.evaluation.reference import OpenedReference, ReferenceSettings
from refocus_jax.evaluation.samples import DrawSettings
from refocus_jax.focus import Pyramid
from refocus_jax.models.attention import choose_implementation
from refocus_jax.models.autoencoder import PatchAutoencoder
from refocus_jax.models.discriminator import PatchDiscriminator
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer
from refocus_jax.models.tokenizer import PYRAMIDS, AliasTokenizer, Autoencoder, DualTokenizer, StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.training import optimizer, perceptual
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.generator_task import GeneratorTask, TeacherSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses, TokenizerTask


def tokenizer(c: ConfigDict) -> DualTokenizer:
    """Optics and networks of stage 1. The alias stream exists for the teacher alone.

    Raises:
      ValueError: settings that contradict each other.
    """
    t, a = c.tokenizer, c.alias
    if t.pyramid not in PYRAMIDS:
        raise ValueError(f"tokenizer.pyramid is {t.pyramid!r}; choose one of {PYRAMIDS}")
    if t.pyramid == "var" and not t.residual:
        raise ValueError("tokenizer.residual is False with tokenizer.pyramid 'var', which is always residual; set it "
                         "True or take the 'focus' pyramid")
    dtype = jnp.dtype(t.dtype)
    autoencoder = Autoencoder(t.channels, tuple(t.channel_multipliers), t.num_residual_blocks, t.latent_channels,
                              t.norm_groups, dtype, t.remat)
    if autoencoder.stride * c.grid_sizes[-1] != c.image_size:
        raise ValueError(
            f"image_size is {c.image_size}, but grid_sizes {tuple(c.grid_sizes)} end with {c.grid_sizes[-1]} and "
            f"tokenizer.channel_multipliers of {len(t.channel_multipliers)} levels reduce by {autoencoder.stride}: "
            f"give image_size {c.grid_sizes[-1] * autoencoder.stride}, or {_fitting(c, autoencoder.stride)}")
    optics = Pyramid(tuple(c.grid_sizes), autoencoder.stride, **c.focus)
    quantizer = MultiScaleQuantizer(tuple(c.grid_sizes), t.vocab_size, t.latent_channels, t.num_phi, t.residual)
    alias = None
    if c.teacher.enabled and a.shared:
        alias = AliasTokenizer(autoencoder, Codebook(t.vocab_size, t.latent_channels))
    elif c.teacher.enabled:
        alias = AliasTokenizer(PatchAutoencoder(a.channels, a.num_residual_blocks, a.latent_channels, a.norm_groups,
                                                autoencoder.stride, dtype), Codebook(a.vocab_size, a.latent_channels))
    return DualTokenizer(optics, StructureTokenizer(autoencoder, quantizer, t.pyramid), alias, a.shared)


def _fitting(c: ConfigDict, stride: int) -> str:
    """What would go with `image_size`: grids in the proportions of those that are given, or sizes that have grids."""
    last, rest = divmod(c.image_size, stride)
    if rest or last < 2:
        below = max(2, last)
        return (f"{below * stride} or {(below + 1) * stride} or another multiple of {stride}, with grid_sizes that end "
                f"with {below}, {below + 1} or that multiple")
    grids = sorted({max(1, round(p * last / c.grid_sizes[-1])) for p in c.grid_sizes})
    return f"choose grid_sizes that end with {last}, such as {tuple(grids)}"


def student(c: ConfigDict, num_classes: int, platform: str | None = None) -> Transformer:
    """The VAR transformer of a config, for devices of a platform; default: those that are here."""
    g = c.generator
    attention = choose_implementation(c.generator.attention, platform or jax.default_backend(),
                                      c.generator.width // c.generator.num_heads, jnp.dtype(c.generator.dtype))
    return Transformer(tuple(c.grid_sizes), c.tokenizer.vocab_size, c.tokenizer.latent_channels, num_classes,
                       **{**g.to_dict(), "attention": attention, "dtype": jnp.dtype(g.dtype)})


def _make_optimizer(section: ConfigDict, steps: int):
    return optimizer.make(optimizer.OptimizerSettings(**section), steps)


def tokenizer_task(c: ConfigDict) -> TokenizerTask:
    """Stage 1."""
    steps, chosen = c.tokenizer_training.steps, perceptual_network(c)
    return TokenizerTask(
        tokenizer(c), TokenizerLosses(**c.losses), Revival(**c.revival),
        _make_optimizer(c.tokenizer_optimizer, steps), steps,
        PatchDiscriminator(**c.discriminator, dtype=jnp.dtype(c.tokenizer.dtype)), AdversarialSettings(**c.adversarial),
        _make_optimizer(c.discriminator_optimizer, steps), chosen and chosen.network, c.tokenizer_batch_parts)


def perceptual_network(c: ConfigDict) -> perceptual.Perceptual | None:
    """What stage 1's perceptual loss looks through; None without one."""
    return perceptual.choose(c.perceptual, c.image_size, jnp.dtype(c.tokenizer.dtype))


def generator_task(c: ConfigDict, num_classes: int, platform: str | None = None) -> GeneratorTask:
    """Stage 2, for devices of a platform; default: those that are here."""
    return GeneratorTask(tokenizer(c), student(c, num_classes, platform), TeacherSettings(**c.teacher),
                         _make_optimizer(c.generator_optimizer, c.generator_training.steps), c.label_drop,
                         c.generator_batch_parts, c.average_decay)


def sampling_settings(c: ConfigDict) -> SamplingSettings:
    """How samples are drawn.

    Raises:
      ValueError: a setting out of range.
    """
    if c.sampling.top_k > c.tokenizer.vocab_size:
        raise ValueError(f"sampling.top_k is {c.sampling.top_k}, more than tokenizer.vocab_size "
                         f"{c.tokenizer.vocab_size}; give 0 (off) or at most that")
    return SamplingSettings(**c.sampling)


def draw_settings(c: ConfigDict) -> DrawSettings:
    """Which samples `--mode=sample` draws."""
    return DrawSettings(**c.draw)


def source_settings(c: ConfigDict) -> SourceSettings:
    """How the images of `data.source` are read."""
    return SourceSettings(c.data.num_classes, c.data.class_depth, c.data.max_unreadable, c.data.sixteen_bit_max)


def reference_settings(c: ConfigDict) -> ReferenceSettings:
    """Where `--mode=evaluate` and stage 2 find images to compare with."""
    return ReferenceSettings(c.evaluation.reference, c.evaluation.reference_count, c.data.source, c.image_size,
                             c.data.resize_ratio, c.data.crops_per_image, source_settings(c))


def open_reference(c: ConfigDict) -> tuple[features.Extractor, OpenedReference]:
    """What looks at images, on the devices of this process, and what samples are compared with, not yet measured.

    Raises:
      ValueError, FileNotFoundError: one of them is not there, or they do not fit.
    """
    extractor = features.load(c.evaluation.features, mesh_lib.make_mesh(jax.local_devices()))
    return extractor, reference_settings(c).open(measurements.dimensions(extractor))
