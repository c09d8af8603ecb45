"""A config bound to its data and its directory: what it is checked for, and both stages of training."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from refocus_jax import build, encode, validate, weights
from refocus_jax.data import pipeline, sources, token_cache
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.reporting import report
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import processes
from refocus_jax.runtime.writer import write_json
from refocus_jax.training import loop
from refocus_jax.training.evaluators import GeneratorEvaluator, SampleDistance, TokenizerEvaluator
from refocus_jax.training.generator_task import GeneratorTask


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
    build.tokenizer_task(c), build.sampling_settings(c), build.draw_settings(c)
    train, validation = (sources.load(c.data.source, split) for split in ("train", "validation"))
    seen = f"{len(train)} images to train on, {len(validation)} held out, classes {', '.join(train.class_names)}"
    processes.check_same(f"data.source {c.data.source}", seen)
    found = len(train.class_names)
    if c.data.num_classes is not None and c.data.num_classes != found:
        raise ValueError(f"data.num_classes is {c.data.num_classes}, but {c.data.source} has {found} classes; leave "
                         "it out to take the source's")
    build.generator_task(c, found)
    # What comes from elsewhere and does not fit is refused now rather than after stage 1.
    tokenizers = {}
    try:
        name, source = "tokenizer_from", c.tokenizer_from
        if source:
            if c.data.tokens:
                tokenizers = encode.digests(weights.load_tokenizer(c, source, mesh))
            else:
                weights.check_tokenizer(c, source, mesh)
        elif c.data.tokens and weights.latest_step(os.path.join(workdir, "tokenizer")) is None:
            tokenizers = {"structure": "not trained yet"}
        name, source = "init_from", c.init_from
        if source:
            weights.check_student(c, found, source, mesh)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is {source!r}: {error}") from error
    if c.data.tokens or c.data.token_examples:
        expected = encode.describe(c, train, tokenizers)
        if c.data.tokens:
            encode.check(c.data.tokens, expected)
    if c.evaluation.during_training:
        build.open_reference(c)
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
    for name in ("tokenizer.remat", "generator.remat", "generator.attention"):  # they change how, not what is computed
        now[name] = before.get(name)
    differing = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in sorted(before.keys() | now)
                 if before.get(name) != now.get(name) and any(f"{name}.".startswith(f"{s}.") for s in shaping)]
    if differing:
        raise ValueError(f"--workdir {workdir} holds another experiment: {'; '.join(differing)}. Give its settings, or "
                         "another --workdir")


def train_tokenizer(run: Run) -> None:
    """Stage 1, into workdir/tokenizer."""
    c, task = run.config, build.tokenizer_task(run.config)
    evaluator = TokenizerEvaluator(task.tokenizer, run.validation_batches(c.tokenizer_batch_size), run.mesh)
    loop.train(task, loop.LoopSettings(**c.tokenizer_training), run.batches(c.tokenizer_batch_size, c.seed),
               frozen=weights.load_perceptual(c), key=jax.random.fold_in(run.key, 0), mesh=run.mesh,
               directory=run.directory("tokenizer"), evaluator=evaluator)


def encode_data(c: ConfigDict, workdir: str) -> None:
    """`--mode=encode`: config.encode.passes over the training images, as tokens in encode.output or WORKDIR/tokens."""
    run = prepare(c, workdir)
    output = c.encode.output or os.path.join(workdir, "tokens")
    params = weights.load_tokenizer(c, c.tokenizer_from or workdir, run.mesh)
    description = encode.describe(c, run.train, encode.digests(params))
    encode.write(c, output, description, run.train, build.tokenizer(c), params)
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
    c, task = run.config, build.generator_task(run.config, run.num_classes)
    frozen = weights.load_tokenizer(c, c.tokenizer_from or run.workdir, run.mesh)
    tokens = _token_cache(run, task.tokenizer, frozen)
    if tokens is None:
        batches, sample = run.batches(c.generator_batch_size, c.seed + 1), None
    else:
        batches = token_cache.batches(tokens, batch_size=c.generator_batch_size, seed=c.seed + 2)
        sample = tokens.sample(_UNIGRAM_EXAMPLES)
    held_out = encode.encode_batches(task.tokenizer, frozen, run.validation_batches(c.generator_batch_size), run.mesh)
    evaluator = GeneratorEvaluator(task, held_out, sample, run.train.class_names, run.mesh, build.sampling_settings(c),
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
    extractor, reference = build.open_reference(run.config)
    measured = reference.measure(extractor, Path(run.workdir) / "evaluation")
    return SampleDistance(extractor, measured, e.during_training, e.batch_size * run.mesh.size)


def _warm_start(run: Run, task: GeneratorTask):
    """What turns the first state of stage 2 into one that starts from `init_from`; None without."""
    c = run.config
    if not c.init_from:
        return None
    return lambda state: task.warm_start(state, weights.load_student(c, run.num_classes, c.init_from, run.mesh))


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
