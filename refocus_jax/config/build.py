"""Builds models, tasks and settings from a config, without reading or writing files (except `open_reference`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from refocus_jax.config.base import STAGES
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import SourceSettings
from refocus_jax.evaluation import measurements
from refocus_jax.evaluation.reference import OpenedReference, ReferenceSettings
from refocus_jax.evaluation.samples import DrawSettings
from refocus_jax.focus import Pyramid
from refocus_jax.judges import features, perceptual
from refocus_jax.models.attention import choose_implementation
from refocus_jax.models.autoencoder import PatchAutoencoder
from refocus_jax.models.discriminator import PatchDiscriminator
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer
from refocus_jax.models.tokenizer import AliasTokenizer, Autoencoder, DualTokenizer, StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.planning.planner import Programs
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.training import optimizer
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.generator_task import GeneratorTask, TeacherSettings
from refocus_jax.training.loop import LoopSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses, TokenizerTask


def tokenizer(c: ConfigDict) -> DualTokenizer:
    """Builds the optics and networks of stage 1; there is an alias tokenizer only if there is a teacher.

    Raises:
      ValueError: Settings contradict each other.
    """
    t, a = c.tokenizer.model, c.tokenizer.alias
    if t.pyramid == "var" and not t.residual:
        raise ValueError("tokenizer.model.residual is False with tokenizer.model.pyramid 'var', which is always "
                         "residual; set it to True, or give the 'focus' pyramid")
    dtype = jnp.dtype(t.dtype)
    autoencoder = Autoencoder(
        channels=t.channels, channel_multipliers=tuple(t.channel_multipliers),
        num_residual_blocks=t.num_residual_blocks, latent_channels=t.latent_channels, norm_groups=t.norm_groups,
        dtype=dtype, remat=t.remat)
    if autoencoder.stride * c.grid_sizes[-1] != c.image_size:
        raise ValueError(
            f"image_size is {c.image_size}, but grid_sizes {tuple(c.grid_sizes)} end with {c.grid_sizes[-1]} and "
            f"tokenizer.model.channel_multipliers of {len(t.channel_multipliers)} levels reduce by "
            f"{autoencoder.stride}: give image_size {c.grid_sizes[-1] * autoencoder.stride}, or "
            f"{_fitting(c, autoencoder.stride)}")
    optics = Pyramid(grid_sizes=tuple(c.grid_sizes), stride=autoencoder.stride, **c.focus)
    quantizer = MultiScaleQuantizer(grid_sizes=tuple(c.grid_sizes), vocab_size=t.vocab_size,
                                    latent_channels=t.latent_channels, num_phi=t.num_phi, residual=t.residual)
    structure = StructureTokenizer(autoencoder=autoencoder, quantizer=quantizer, pyramid=t.pyramid)
    alias = None
    if c.generator.teacher.enabled and a.shared:
        codebook = Codebook(vocab_size=t.vocab_size, latent_channels=t.latent_channels)
        alias = AliasTokenizer(autoencoder=autoencoder, codebook=codebook)
    elif c.generator.teacher.enabled:
        patches = PatchAutoencoder(
            channels=a.channels, num_residual_blocks=a.num_residual_blocks, latent_channels=a.latent_channels,
            norm_groups=a.norm_groups, stride=autoencoder.stride, dtype=dtype)
        codebook = Codebook(vocab_size=a.vocab_size, latent_channels=a.latent_channels)
        alias = AliasTokenizer(autoencoder=patches, codebook=codebook)
    return DualTokenizer(optics=optics, structure=structure, alias=alias, shared=a.shared)


def _fitting(c: ConfigDict, stride: int) -> str:
    """Suggests grids that fit `image_size` in the proportions of `grid_sizes`, or image sizes that have grids."""
    last, rest = divmod(c.image_size, stride)
    if rest or last < 2:
        below = max(2, last)
        return (f"{below * stride} or {(below + 1) * stride} or another multiple of {stride}, with grid_sizes that end "
                f"with {below}, {below + 1} or that multiple")
    grids = sorted({max(1, round(p * last / c.grid_sizes[-1])) for p in c.grid_sizes})
    return f"choose grid_sizes that end with {last}, such as {tuple(grids)}"


def student(c: ConfigDict, num_classes: int, platform: str | None = None) -> Transformer:
    """Builds the transformer of a config for devices of a platform; default: the platform of this machine."""
    g = c.generator.model
    attention = choose_implementation(g.attention, platform or jax.default_backend(), g.width // g.num_heads,
                                      jnp.dtype(g.dtype))
    t = c.tokenizer.model
    return Transformer(
        grid_sizes=tuple(c.grid_sizes), vocab_size=t.vocab_size, latent_channels=t.latent_channels,
        num_classes=num_classes, architecture=c.generator.architecture,
        **{**g.to_dict(), "attention": attention, "dtype": jnp.dtype(g.dtype)})


def _make_optimizer(section: ConfigDict, steps: int) -> optax.GradientTransformation:
    return optimizer.make(optimizer.OptimizerSettings(**section), steps)


def loop_settings(section: ConfigDict) -> LoopSettings:
    """Picks the settings of the training loop from `tokenizer.train` or `generator.train`."""
    return LoopSettings(**{field.name: section[field.name] for field in dataclasses.fields(LoopSettings)})


def tokenizer_task(c: ConfigDict) -> TokenizerTask:
    """Builds the training task of stage 1."""
    t, chosen = c.tokenizer, perceptual_network(c)
    return TokenizerTask(
        tokenizer=tokenizer(c), losses=TokenizerLosses(**t.loss), revival=Revival(**t.revival),
        optimizer=_make_optimizer(t.optimizer, t.train.steps), steps=t.train.steps,
        discriminator=PatchDiscriminator(**t.discriminator, dtype=jnp.dtype(t.model.dtype)),
        adversarial=AdversarialSettings(**t.adversarial),
        discriminator_optimizer=_make_optimizer(t.discriminator_optimizer, t.train.steps),
        perceptual=chosen.network if chosen else None, microbatches=t.train.microbatches)


def perceptual_network(c: ConfigDict) -> perceptual.Perceptual | None:
    """Chooses the network of stage 1's perceptual loss; None if there is no such loss."""
    return perceptual.choose(c.tokenizer.perceptual_network, c.image_size, jnp.dtype(c.tokenizer.model.dtype))


def generator_task(c: ConfigDict, num_classes: int, platform: str | None = None) -> GeneratorTask:
    """Builds the training task of stage 2 for devices of a platform; default: the platform of this machine."""
    g = c.generator
    return GeneratorTask(
        tokenizer=tokenizer(c), student=student(c, num_classes, platform), teacher=TeacherSettings(**g.teacher),
        optimizer=_make_optimizer(g.optimizer, g.train.steps), label_dropout=g.train.label_dropout,
        microbatches=g.train.microbatches, ema_decay=g.train.ema_decay)


def sampling_settings(c: ConfigDict) -> SamplingSettings:
    """Returns how samples are drawn."""
    return SamplingSettings(**c.sampling)


def draw_settings(c: ConfigDict) -> DrawSettings:
    """Returns which samples `--mode=sample` draws."""
    return DrawSettings(**c.sample)


def source_settings(c: ConfigDict) -> SourceSettings:
    """Returns how the images of `data.source` are read."""
    return SourceSettings(num_classes=c.data.num_classes, class_depth=c.data.class_depth,
                          max_unreadable=c.data.max_unreadable, sixteen_bit_max=c.data.sixteen_bit_max)


def crop_rule(c: ConfigDict) -> CropRule:
    """Returns how images become crops."""
    return CropRule(image_size=c.image_size, resize_ratio=c.data.resize_ratio, flip=c.data.flip,
                    crops_per_image=c.data.crops_per_image)


def reference_settings(c: ConfigDict) -> ReferenceSettings:
    """Returns where `--mode=evaluate` and stage 2 find the images that samples are compared with."""
    return ReferenceSettings(reference=c.evaluate.reference, count=c.evaluate.reference_count, source=c.data.source,
                             rule=crop_rule(c), source_settings=source_settings(c))


def open_reference(c: ConfigDict) -> tuple[features.Extractor, OpenedReference]:
    """Loads the feature network and opens the reference that samples are compared with.

    Returns:
      The feature network, on the devices of this process, and the reference, which is not measured yet.

    Raises:
      ValueError: One of them is invalid, or they do not fit each other.
      FileNotFoundError: A file of one of them is missing.
    """
    extractor = features.load(c.evaluate.features, mesh_lib.make_mesh(jax.local_devices()))
    return extractor, reference_settings(c).open(measurements.dimensions(extractor))


_DEFAULT_CLASSES = 1000  # ImageNet's, for programs that are compiled without opening the data


def programs(c: ConfigDict, platform: str, changes: Mapping[str, Any]) -> Programs:
    """Builds what `--mode=plan` compiles.

    Args:
      c: The config; it is not changed.
      platform: The platform of the devices: "tpu", "gpu" or "cpu".
      changes: New values of settings, by name.
    """
    c = c.copy_and_resolve_references()
    c.update_from_flattened_dict(dict(changes))
    return Programs(
        tokenizer=tokenizer_task(c), generator=generator_task(c, c.data.num_classes or _DEFAULT_CLASSES, platform),
        sampling=sampling_settings(c), loop={stage: loop_settings(c[stage].train) for stage in STAGES},
        batch_sizes={stage: c[stage].train.batch_size for stage in STAGES} | {"sample": c.sample.batch_size},
        cached_tokens=bool(c.data.tokens or c.data.token_examples))
