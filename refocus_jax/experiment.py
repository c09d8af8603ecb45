"""From a config to data, models, tasks and runs; the modes beside it start from here."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from refocus_jax import encode, validate
from refocus_jax.data import pipeline, sources, token_cache
from refocus_jax.evaluation import features, measurements
from refocus_jax.evaluation.reference import OpenedReference, ReferenceSettings
from refocus_jax.evaluation.samples import DrawSettings
from refocus_jax.focus import Pyramid
from refocus_jax.interop import var_state_dict
from refocus_jax.models.attention import choose_implementation
from refocus_jax.models.autoencoder import PatchAutoencoder
from refocus_jax.models.discriminator import PatchDiscriminator
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer
from refocus_jax.models.tokenizer import PYRAMIDS, AliasTokenizer, Autoencoder, DualTokenizer, StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.reporting import report
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import processes, weight_files
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.writer import write_json
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.training import loop, optimizer, perceptual
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.evaluators import GeneratorEvaluator, SampleDistance, TokenizerEvaluator
from refocus_jax.training.generator_task import GeneratorTask, TeacherSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses, TokenizerTask


def build_tokenizer(c: ConfigDict) -> DualTokenizer:
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
                              t.norm_groups, dtype)
    if autoencoder.stride * c.grid_sizes[-1] != c.image_size:
        raise ValueError(
            f"image_size is {c.image_size}, but grid_sizes {tuple(c.grid_sizes)} end with {c.grid_sizes[-1]} and "
            f"tokenizer.channel_multipliers of {len(t.channel_multipliers)} levels reduce by {autoencoder.stride}: "
            f"give image_size {c.grid_sizes[-1] * autoencoder.stride}, or change grid_sizes")
    optics = Pyramid(tuple(c.grid_sizes), autoencoder.stride, **c.focus)
    quantizer = MultiScaleQuantizer(tuple(c.grid_sizes), t.vocab_size, t.latent_channels, t.num_phi, t.residual)
    alias = None
    if c.teacher.enabled and a.shared:
        alias = AliasTokenizer(autoencoder, Codebook(t.vocab_size, t.latent_channels))
    elif c.teacher.enabled:
        alias = AliasTokenizer(PatchAutoencoder(a.channels, a.num_residual_blocks, a.latent_channels, a.norm_groups,
                                                autoencoder.stride, dtype), Codebook(a.vocab_size, a.latent_channels))
    return DualTokenizer(optics, StructureTokenizer(autoencoder, quantizer, t.pyramid), alias, a.shared)


def build_student(c: ConfigDict, num_classes: int, platform: str | None = None) -> Transformer:
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
    steps, chosen = c.tokenizer_training.steps, _perceptual(c)
    return TokenizerTask(
        build_tokenizer(c), TokenizerLosses(**c.losses), Revival(**c.revival),
        _make_optimizer(c.tokenizer_optimizer, steps), steps,
        PatchDiscriminator(**c.discriminator, dtype=jnp.dtype(c.tokenizer.dtype)), AdversarialSettings(**c.adversarial),
        _make_optimizer(c.discriminator_optimizer, steps), chosen and chosen.network, c.tokenizer_batch_parts)


def _perceptual(c: ConfigDict) -> perceptual.Perceptual | None:
    return perceptual.choose(c.perceptual, c.image_size, jnp.dtype(c.tokenizer.dtype))


def generator_task(c: ConfigDict, num_classes: int, platform: str | None = None) -> GeneratorTask:
    """Stage 2, for devices of a platform; default: those that are here."""
    return GeneratorTask(build_tokenizer(c), build_student(c, num_classes, platform), TeacherSettings(**c.teacher),
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


def reference_settings(c: ConfigDict) -> ReferenceSettings:
    """Where `--mode=evaluate` and stage 2 find images to compare with."""
    return ReferenceSettings(c.evaluation.reference, c.evaluation.reference_count, c.data.source, c.image_size,
                             c.data.resize_ratio, c.data.crops_per_image)


def open_reference(c: ConfigDict) -> tuple[features.Extractor, OpenedReference]:
    """What looks at images, on the devices of this process, and what samples are compared with, not yet measured.

    Raises:
      ValueError, FileNotFoundError: one of them is not there, or they do not fit.
    """
    extractor = features.load(c.evaluation.features, mesh_lib.make_mesh(jax.local_devices()))
    return extractor, reference_settings(c).open(measurements.dimensions(extractor))


@dataclasses.dataclass(frozen=True)
class Run:
    """A config bound to its data, its devices and its directory."""

    config: ConfigDict
    workdir: str
    train: sources.Source
    validation: sources.Source
    mesh: Any

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)

    def directory(self, stage: str) -> str:
        return os.path.join(self.workdir, stage)

    def batches(self, batch_size: int, seed: int):
        c = self.config
        return pipeline.training_batches(
            self.train, image_size=c.image_size, batch_size=batch_size, seed=seed, resize_ratio=c.data.resize_ratio,
            flip=c.data.flip, num_workers=c.data.num_workers)

    def validation_batches(self, batch_size: int):
        c = self.config
        return pipeline.validation_batches(
            self.validation, image_size=c.image_size, batch_size=batch_size, resize_ratio=c.data.resize_ratio,
            crops_per_image=c.data.crops_per_image, limit=c.data.validation_examples)


def prepare(c: ConfigDict, workdir: str) -> Run:
    """Opens the data and writes config.json. Everything that a config can get wrong fails here or before.

    Raises:
      ValueError: the config or the data contradict themselves.
    """
    if "://" in workdir:
        raise ValueError(f"--workdir is {workdir}, which is no directory; give one, of a file system that all machines "
                         "see (buckets can be mounted, as by gcsfuse)")
    mesh = mesh_lib.make_mesh(**c.mesh)
    validate.check(c, mesh.size)
    tokenizer_task(c), sampling_settings(c), draw_settings(c)
    train, validation = (sources.load(c.data.source, split) for split in ("train", "validation"))
    seen = f"{len(train)} images to train on, {len(validation)} held out, classes {', '.join(train.class_names)}"
    processes.check_same(f"data.source {c.data.source}", seen)
    found = len(train.class_names)
    if c.data.num_classes is not None and c.data.num_classes != found:
        raise ValueError(f"data.num_classes is {c.data.num_classes}, but {c.data.source} has {found} classes; leave "
                         "it out to take the source's")
    generator_task(c, found)
    # What comes from elsewhere and does not fit is refused now rather than after stage 1.
    tokenizers = {}
    try:
        name, source = "tokenizer_from", c.tokenizer_from
        if source:
            params = load_tokenizer_params(c, source, mesh)
            tokenizers = encode.digests(params) if c.data.tokens else {}
        elif c.data.tokens and latest_step(os.path.join(workdir, "tokenizer")) is None:
            tokenizers = {"structure": "not trained yet"}
        name, source = "init_from", c.init_from
        if source:
            load_student_params(c, found, source, mesh)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is {source!r}: {error}") from error
    if c.data.tokens or c.data.token_examples:
        expected = encode.describe(c, train, tokenizers)
        if c.data.tokens:
            encode.check(c.data.tokens, expected)
    if c.evaluation.during_training:
        open_reference(c)
    values = json.loads(c.to_json()) | {"class_names": list(train.class_names)}
    _check_workdir(values, workdir)
    write_json(os.path.join(workdir, "config.json"), values)
    return Run(c, workdir, train, validation, mesh)


# The settings that shape what a stage saves. All others (steps, learning rates, logging, ...) may change on resume.
_SHAPING = {
    "tokenizer": ("image_size", "grid_sizes", "focus", "tokenizer", "alias", "teacher.enabled", "class_names"),
    "generator": ("image_size", "grid_sizes", "focus", "tokenizer", "alias", "generator", "teacher", "class_names",
                  "tokenizer_from", "average_decay"),
}


def _check_workdir(values: dict[str, Any], workdir: str) -> None:
    """Raises a ValueError if a stage in `workdir` has been trained with other settings than its config's `values`."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        return
    with open(path) as file:
        before, now = flatten_dict(json.load(file), sep="."), flatten_dict(values, sep=".")
    shaping = [name for stage, names in _SHAPING.items() for name in names
               if os.path.isdir(os.path.join(workdir, stage, "checkpoints"))]
    for name in ("generator.remat", "generator.attention"):  # they change how, not what is computed
        now[name] = before.get(name)
    differing = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in sorted(before.keys() | now)
                 if before.get(name) != now.get(name) and any(f"{name}.".startswith(f"{s}.") for s in shaping)]
    if differing:
        raise ValueError(f"--workdir {workdir} holds another experiment: {'; '.join(differing)}. Give its settings, or "
                         "another --workdir")


def train_tokenizer(run: Run) -> None:
    """Stage 1, into workdir/tokenizer."""
    c, task = run.config, tokenizer_task(run.config)
    evaluator = TokenizerEvaluator(task.tokenizer, run.validation_batches(c.tokenizer_batch_size), run.mesh)
    loop.train(task, loop.LoopSettings(**c.tokenizer_training), run.batches(c.tokenizer_batch_size, c.seed),
               frozen=load_perceptual_params(c), key=jax.random.fold_in(run.key, 0), mesh=run.mesh,
               directory=run.directory("tokenizer"), evaluator=evaluator)


def load_perceptual_params(c: ConfigDict) -> Any:
    """What stage 1 takes as frozen: the parameters of the perceptual network; None without one.

    Raises:
      FileNotFoundError: no such file. ValueError: it is damaged or another network's.
    """
    if tokenizer_task(c).frozen_shapes is None:
        return None
    try:
        return _perceptual(c).load()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"perceptual is {c.perceptual!r}: {error}; or set perceptual=none") from error


def _check_fit(source: str, found: Any, expected: Any, names: dict[str, str]) -> None:
    """Raises a ValueError if modules differ in these attributes; `names` are those of the settings."""
    problems = [f"{name} is {getattr(found, attribute)!r}, the config's {getattr(expected, attribute)!r}"
                for attribute, name in names.items() if getattr(found, attribute) != getattr(expected, attribute)]
    if problems:
        raise ValueError(f"{source} does not fit the config: {'; '.join(problems)}. Change the config, or take another "
                         "file; nothing is initialized anew in silence")


def load_tokenizer_params(c: ConfigDict, source: str, mesh) -> Any:
    """The `DualTokenizer` parameters of a workdir's latest checkpoint, or of an official VQVAE's file.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        if c.teacher.enabled:
            raise ValueError(f"tokenizer_from is {source}, which has no alias tokenizer, and teacher.enabled is True; "
                             "set teacher.enabled=False, or leave tokenizer_from out to train tokenizers")
        expected = build_tokenizer(c).structure
        found, params = var_state_dict.import_tokenizer(weight_files.read(source), c.grid_sizes,
                                                        c.tokenizer.norm_groups)
        _check_fit(source, found.autoencoder, expected.autoencoder, {
            name: f"tokenizer.{name}" for name in ("channels", "channel_multipliers", "num_residual_blocks")})
        _check_fit(source, found.quantizer, expected.quantizer, {
            name: f"tokenizer.{name}" for name in ("vocab_size", "latent_channels", "num_phi", "residual")})
        return mesh_lib.put_whole({"structure": params}, mesh_lib.replicated(mesh))
    task = tokenizer_task(c)
    params = jax.eval_shape(task.init, jax.random.key(0)).params
    template = mesh_lib.abstract(params, mesh_lib.replicated(mesh))
    with Checkpoints(os.path.join(source, "tokenizer", "checkpoints")) as checkpoints:
        return checkpoints.restore({"params": template}, partial=True)["params"]


def load_student_params(c: ConfigDict, num_classes: int, source: str, mesh) -> Any:
    """The student's parameters of a workdir's latest checkpoint (their average if it has one), or of a VAR's file.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        expected = build_student(c, num_classes)
        found, params = var_state_dict.import_transformer(weight_files.read(source), c.grid_sizes,
                                                          c.generator.num_heads)
        _check_fit(source, found, expected, {"vocab_size": "tokenizer.vocab_size", "num_classes": "data.num_classes",
                                             "latent_channels": "tokenizer.latent_channels"} | {
            name: f"generator.{name}" for name in ("depth", "width", "num_heads", "qk_norm", "shared_modulation")})
        return mesh_lib.put_whole(params, mesh_lib.parameter_shardings(mesh, params))
    template = loop.abstract_state(generator_task(c, num_classes), mesh)
    with Checkpoints(os.path.join(source, "generator", "checkpoints")) as checkpoints:
        wanted = {"params": {"student": template.params["student"]}}
        if "average" in checkpoints.parts():  # the source's config, and not `c`, has decided that
            return checkpoints.restore({"average": wanted["params"]["student"]}, partial=True)["average"]
        return checkpoints.restore(wanted, partial=True)["params"]["student"]


def latest_step(directory: str) -> int | None:
    """The step of a stage's latest checkpoint."""
    with Checkpoints(os.path.join(directory, "checkpoints")) as checkpoints:
        return checkpoints.latest_step()


def encode_data(c: ConfigDict, workdir: str) -> None:
    """`--mode=encode`: config.encode.passes over the training images, as tokens in encode.output or WORKDIR/tokens."""
    run = prepare(c, workdir)
    output = c.encode.output or os.path.join(workdir, "tokens")
    params = load_tokenizer_params(c, c.tokenizer_from or workdir, run.mesh)
    description = encode.describe(c, run.train, encode.digests(params))
    encode.write(c, output, description, run.train, build_tokenizer(c), params)
    if jax.process_index() == 0:
        print(f"{description.examples} examples in {output}")


def _token_cache(run: Run, tokenizer: DualTokenizer, frozen: Any) -> token_cache.TokenCache | None:
    """The training tokens of stage 2; None if they are made on the fly."""
    c = run.config
    if c.data.tokens:
        encode.check(c.data.tokens, encode.describe(c, run.train, encode.digests(frozen)))
        return token_cache.TokenCache(c.data.tokens)
    return encode.into_workdir(c, run.workdir, run.train, tokenizer, frozen) if c.data.token_examples else None


# Enough for a unigram model of every scale, in memory.
_UNIGRAM_EXAMPLES = 2**15


def train_generator(run: Run) -> None:
    """Stage 2, into workdir/generator."""
    c, task = run.config, generator_task(run.config, run.num_classes)
    frozen = load_tokenizer_params(c, c.tokenizer_from or run.workdir, run.mesh)
    tokens = _token_cache(run, task.tokenizer, frozen)
    if tokens is None:
        batches, sample = run.batches(c.generator_batch_size, c.seed + 1), None
    else:
        batches = token_cache.batches(tokens, batch_size=c.generator_batch_size, seed=c.seed + 2)
        sample = tokens.sample(_UNIGRAM_EXAMPLES)
    held_out = encode.encode_batches(task.tokenizer, frozen, run.validation_batches(c.generator_batch_size), run.mesh)
    evaluator = GeneratorEvaluator(task, held_out, sample, run.train.class_names, run.mesh, sampling_settings(c),
                                   c.generator_batch_size, samples_per_class=c.samples_per_class,
                                   distance=_sample_distance(run))
    loop.train(task, loop.LoopSettings(**c.generator_training), batches, frozen=frozen,
               key=jax.random.fold_in(run.key, 1), mesh=run.mesh, directory=run.directory("generator"),
               evaluator=evaluator, warm_start=_warm_start(run, task))


def _sample_distance(run: Run) -> SampleDistance | None:
    """What `evaluation.during_training` asks for, with the reference measured; None if it is 0."""
    e = run.config.evaluation
    if not e.during_training:
        return None
    extractor, reference = open_reference(run.config)
    measured = reference.measure(extractor, Path(run.workdir) / "evaluation")
    return SampleDistance(extractor, measured, e.during_training, e.batch_size * run.mesh.size)


def _warm_start(run: Run, task: GeneratorTask):
    """What turns the first state of stage 2 into one that starts from `init_from`; None without."""
    c = run.config
    if not c.init_from:
        return None
    return lambda state: task.warm_start(state, load_student_params(c, run.num_classes, c.init_from, run.mesh))


def train(c: ConfigDict, workdir: str) -> None:
    """Both stages, each resumed where it stopped; then what they have learned, in words and numbers."""
    run = prepare(c, workdir)
    if not c.tokenizer_from:
        train_tokenizer(run)
    train_generator(run)
    if jax.process_index() == 0:
        print(summary(workdir))  # the one thing a run says on standard output


def summary(workdir: str) -> str:
    """What the last evaluations of a workdir's stages say, as tables."""
    tables = []
    for stage in ("tokenizer", "generator"):
        path = os.path.join(workdir, stage, "evaluation.json")
        if os.path.exists(path):
            with open(path) as file:
                tables.append(report.table(stage, json.load(file)))
    return "\n\n".join(tables)
