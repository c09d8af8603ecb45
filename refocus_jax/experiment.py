"""A config bound to its data and its directory: what it is checked for, and both stages of training."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from refocus_jax import build, encode, resume, validate, weights
from refocus_jax.data import pipeline, sources, token_cache
from refocus_jax.models.randomness import fold_in, seed_of
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.reporting import report, runs
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

    def batches(self, stage: str, batch_size: int):
        c, seed = self.config, seed_of(self.config.seed, f"{stage} images")
        return pipeline.training_batches(
            self.train, image_size=c.image_size, batch_size=batch_size, seed=seed, resize_ratio=c.data.resize_ratio,
            flip=c.data.flip, num_workers=c.data.num_workers)

    def made_with(self, stage: str, tokenizers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What the checkpoints of a stage remember; `tokenizers` are digests of those that stage 2 is trained on."""
        c, tokens = self.config, None
        if stage == "generator" and c.data.tokens:
            tokens = token_cache.describe(c.data.tokens)
        elif stage == "generator" and c.data.token_examples:
            tokens = encode.describe(c, self.train, tokenizers or {}, c.data.token_examples)
        return resume.made_with(c, stage, self.train, tokenizers=tokenizers, tokens=tokens)

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
    workdir = validate.check_workdir(workdir)
    mesh = mesh_lib.make_mesh(**c.mesh)
    validate.check(c, mesh.size)
    build.tokenizer_task(c), build.sampling_settings(c), build.draw_settings(c)
    train, validation = sources.load_splits(c.data.source, build.source_settings(c))
    seen = (f"{len(train)} images to train on (fingerprint {train.fingerprint}), {len(validation)} held out "
            f"({validation.fingerprint}), classes {', '.join(train.class_names)}")
    processes.check_same(f"data.source {c.data.source}", seen)
    found = len(train.class_names)
    if c.data.num_classes is not None and c.data.num_classes != found:
        raise ValueError(f"data.num_classes is {c.data.num_classes}, but {c.data.source} has {found} classes; leave "
                         "it out to take the source's")
    build.generator_task(c, found)
    run = Run(c, workdir, train, validation, mesh)
    trained = {stage: resume.trained(workdir, stage) for stage in resume.STAGES}
    _check_settings(run, trained)
    # What comes from elsewhere and does not fit is refused now rather than after stage 1.
    tokenizers = {}
    try:
        name, source = "tokenizer_from", c.tokenizer_from
        if source:
            if c.data.tokens or trained["generator"]:
                tokenizers = encode.digests(weights.load_tokenizer(c, source, mesh))
            else:
                weights.check_tokenizer(c, source, mesh)
        elif c.data.tokens and not trained["tokenizer"]:
            tokenizers = {"structure": "not trained yet"}
        name, source = "init_from", c.init_from
        if source:
            weights.check_student(c, found, source, mesh, any_classes=c.init_classes == "new")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is {source!r}: {error}") from error
    if c.data.tokens or c.data.token_examples:
        expected = encode.describe(c, train, tokenizers)
        if c.data.tokens:
            encode.check(c.data.tokens, expected)
    if trained["generator"] and not c.tokenizer_from:
        resume.check_tokenizers_stay(workdir, trained["tokenizer"], c.tokenizer_training.steps)
        tokenizers = encode.digests(weights.load_tokenizer(c, workdir, mesh))
    resume.check_tokenizers(workdir, tokenizers, c.tokenizer_from)
    if c.evaluation.during_training:
        build.open_reference(c)
    config_file = Path(workdir, "config.json")
    runs.read_json(config_file)  # a damaged one is a sign that is not to be written over
    write_json(config_file, json.loads(c.to_json()) | {"class_names": list(train.class_names)})
    return run


def _check_settings(run: Run, trained: Mapping[str, resume.Trained | None]) -> None:
    """Raises a ValueError if the settings are not those of the stages that have been trained, where they must be."""
    c = run.config
    for stage, before in trained.items():
        if before:
            unused = stage == "tokenizer" and c.tokenizer_from
            goes_on = not unused and before.step < c[f"{stage}_training"].steps
            resume.check(run.workdir, stage, before, run.made_with(stage), goes_on)


def train_tokenizer(run: Run) -> None:
    """Stage 1, into workdir/tokenizer."""
    c, task = run.config, build.tokenizer_task(run.config)
    evaluator = TokenizerEvaluator(task.tokenizer, run.validation_batches(c.tokenizer_batch_size), run.mesh)
    loop.train(task, loop.LoopSettings(**c.tokenizer_training), run.batches("tokenizer", c.tokenizer_batch_size),
               frozen=weights.load_perceptual(c), key=fold_in(run.key, "tokenizer"), mesh=run.mesh,
               directory=run.directory("tokenizer"), evaluator=evaluator, made_with=run.made_with("tokenizer"))


def encode_data(c: ConfigDict, workdir: str) -> None:
    """`--mode=encode`: config.encode.passes over the training images, as tokens in encode.output or WORKDIR/tokens."""
    run = prepare(c, workdir)
    output = c.encode.output or os.path.join(workdir, "tokens")
    params = weights.load_tokenizer(c, c.tokenizer_from or workdir, run.mesh)
    description = encode.describe(c, run.train, encode.digests(params))
    encode.write(c, output, description, run.train, build.tokenizer(c), params)
    if jax.process_index() == 0:
        print(f"{description.examples} examples in {output}")


def _token_cache(run: Run, tokenizer: DualTokenizer, frozen: Any,
                 tokenizers: Mapping[str, str]) -> token_cache.TokenCache | None:
    """The training tokens of stage 2; None if they are made on the fly."""
    c = run.config
    if c.data.tokens:
        encode.check(c.data.tokens, encode.describe(c, run.train, tokenizers))
        return token_cache.TokenCache(c.data.tokens)
    if not c.data.token_examples:
        return None
    return encode.into_workdir(c, run.workdir, run.train, tokenizer, frozen, tokenizers)


# Enough for a unigram model of every scale, in memory.
_UNIGRAM_EXAMPLES = 2**15


def train_generator(run: Run) -> None:
    """Stage 2, into workdir/generator."""
    c, task = run.config, build.generator_task(run.config, run.num_classes)
    frozen = weights.load_tokenizer(c, c.tokenizer_from or run.workdir, run.mesh)
    tokenizers = encode.digests(frozen)
    tokens = _token_cache(run, task.tokenizer, frozen, tokenizers)
    if tokens is None:
        batches, sample = run.batches("generator", c.generator_batch_size), None
    else:
        seed = seed_of(c.seed, "generator tokens")
        batches = token_cache.batches(tokens, batch_size=c.generator_batch_size, seed=seed)
        sample = tokens.sample(_UNIGRAM_EXAMPLES)
    held_out = encode.encode_batches(task.tokenizer, frozen, run.validation_batches(c.generator_batch_size), run.mesh)
    evaluator = GeneratorEvaluator(task, held_out, sample, run.train.class_names, run.mesh, build.sampling_settings(c),
                                   c.generator_batch_size, samples_per_class=c.samples_per_class,
                                   distance=_sample_distance(run))
    loop.train(task, loop.LoopSettings(**c.generator_training), batches, frozen=frozen,
               key=fold_in(run.key, "generator"), mesh=run.mesh, directory=run.directory("generator"),
               evaluator=evaluator, warm_start=_warm_start(run, task, tokenizers),
               made_with=run.made_with("generator", tokenizers))


def _sample_distance(run: Run) -> SampleDistance | None:
    """What `evaluation.during_training` asks for, with the reference measured; None if it is 0."""
    e = run.config.evaluation
    if not e.during_training:
        return None
    extractor, reference = build.open_reference(run.config)
    measured = reference.measure(extractor, Path(run.workdir) / "evaluation")
    return SampleDistance(extractor, measured, e.during_training, e.batch_size * run.mesh.size)


def _warm_start(run: Run, task: GeneratorTask, tokenizers: Mapping[str, str]):
    """What turns the first state of stage 2 into one that starts from `init_from`; None without."""
    c = run.config
    if not c.init_from:
        return None
    def start(state):
        if differing := os.path.isdir(c.init_from) and resume.other_tokenizers(c.init_from, tokenizers):
            logging.warning("init_from is %s, whose student was trained on other tokenizers (%s differ) and knows "
                            "their tokens, not those of this run.", c.init_from, ", ".join(differing))
        new = c.init_classes == "new"
        student = weights.load_student(c, run.num_classes, c.init_from, run.mesh, any_classes=new)
        if new:
            logging.warning("init_from is %s: the embedding of its %d classes gives way to a new one of %d. The null "
                            "class and all the rest are its own.", c.init_from, len(student["class_embedding"]) - 1,
                            run.num_classes)
        return task.warm_start(state, student, new)

    return start


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
        if numbers := runs.read_json(Path(workdir, stage, "evaluation.json")):
            tables.append(report.table(stage, numbers))
    return "\n\n".join(tables)
