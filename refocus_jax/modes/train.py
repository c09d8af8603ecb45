"""`--mode=train`, `--mode=tokenizer` and `--mode=generator`: trains both stages, or one of them."""

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build, stages
from refocus_jax.config.base import STAGES
from refocus_jax.config.run import Run
from refocus_jax.data import token_cache
from refocus_jax.models.randomness import fold_in, seed_of
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.planning import targets
from refocus_jax.planning.planner import Planner
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.prepare import Prepared, prepare
from refocus_jax.reporting import evaluations
from refocus_jax.runtime.digests import digests
from refocus_jax.runtime.files import read_json
from refocus_jax.runtime.mirror import Mirror
from refocus_jax.runtime.progress import Phase
from refocus_jax.training import encode, loop
from refocus_jax.training.evaluators import GeneratorEvaluator, SampleDistance, TokenizerEvaluator
from refocus_jax.training.generator_task import GeneratorTask

# Training examples whose tokens are held in memory; enough for a unigram model of every scale.
_UNIGRAM_EXAMPLES = 2**15


def run(c: ConfigDict, workdir: str) -> None:
    """Trains both stages, each resumed where it stopped, then prints the results of their last evaluations."""
    prepared = _prepare(c, workdir)
    if not c.tokenizer.pretrained:
        train_tokenizer(prepared)
    train_generator(prepared)
    if jax.process_index() == 0:
        print(summary(workdir), conclusion(workdir), sep="\n\n")  # the only output of a run on standard output


def run_tokenizer(c: ConfigDict, workdir: str) -> None:
    """Trains only stage 1."""
    train_tokenizer(_prepare(c, workdir, "tokenizer"))


def run_generator(c: ConfigDict, workdir: str) -> None:
    """Trains only stage 2."""
    train_generator(_prepare(c, workdir))


def _prepare(c: ConfigDict, workdir: str, resumes: str = "generator") -> Prepared:
    with Phase("reading and checking images, settings and weights"):
        return prepare(c, workdir, resumes)


def train_tokenizer(prepared: Prepared) -> None:
    """Trains stage 1 in WORKDIR/tokenizer."""
    run = prepared.run
    c, task = run.config, build.tokenizer_task(run.config)
    evaluator = TokenizerEvaluator(tokenizer=task.tokenizer, batches=run.validation_batches("tokenizer"), mesh=run.mesh)
    loop.train(task, build.loop_settings(c.tokenizer.train), run.batches("tokenizer"),
               frozen=parameters.perceptual(c), key=fold_in(run.key, "tokenizer"), mesh=run.mesh,
               directory=run.directory("tokenizer"), evaluator=evaluator,
               resume_step=run.resume_step("tokenizer"), made_with=run.made_with("tokenizer"),
               mirror=_mirror(run, "tokenizer"),
               share_of_peak=_share_of_peak(run, "tokenizer"), profile_steps=tuple(c.profile.steps))


def train_generator(prepared: Prepared) -> None:
    """Trains stage 2 in WORKDIR/generator."""
    run, frozen = prepared.run, prepared.tokenizers
    c, task = run.config, build.generator_task(run.config, run.num_classes)
    if frozen is None:
        frozen = parameters.tokenizer(c, c.tokenizer.pretrained or run.workdir, run.mesh).params
    tokenizers = digests(frozen)
    tokens = _token_cache(run, task.tokenizer, frozen, tokenizers)
    if tokens is None:
        batches, sample = run.batches("generator"), None
    else:
        seed = seed_of(c.seed, "generator tokens")
        batches = token_cache.batches(tokens, batch_size=c.generator.train.batch_size, seed=seed)
        sample = tokens.sample(_UNIGRAM_EXAMPLES)
    with Phase("generator: encoding the held-out images"):
        held_out = encode.encode_batches(task.tokenizer, frozen, run.validation_batches("generator"), run.mesh)
    evaluator = GeneratorEvaluator(
        task=task, validation=held_out, train=sample, class_names=run.train.class_names, mesh=run.mesh,
        sampling=build.sampling_settings(c), batch_size=c.generator.train.batch_size,
        samples_per_class=c.generator.train.samples_per_class, distance=_sample_distance(run))
    loop.train(task, build.loop_settings(c.generator.train), batches, frozen=frozen,
               key=fold_in(run.key, "generator"), mesh=run.mesh, directory=run.directory("generator"),
               evaluator=evaluator, warm_start=_warm_start(prepared, task, tokenizers),
               resume_step=run.resume_step("generator"), made_with=run.made_with("generator", tokenizers),
               mirror=_mirror(run, "generator"),
               share_of_peak=_share_of_peak(run, "generator"), profile_steps=tuple(c.profile.steps))


def _mirror(run: Run, stage: str) -> Mirror | None:
    """Opens the copy of a stage's metrics that `log.wandb` asks for, in process 0."""
    project = run.config.log.wandb
    if not project or jax.process_index():
        return None
    Path(run.directory(stage)).mkdir(parents=True, exist_ok=True)
    return Mirror(project, run.directory(stage), json.loads(run.config.to_json()))


def _share_of_peak(run: Run, stage: str) -> float | None:
    """Returns the fraction of the devices' peak FLOPs that one step per second uses; None for unknown devices."""
    device = run.mesh.devices.flat[0]
    peak = targets.peak_flops(device.device_kind)
    if peak is None:
        return None
    make = functools.partial(build.programs, run.config, device.platform)
    return Planner(make=make, target=None, mesh=run.mesh).flops(stage) / (peak * run.mesh.size)


def _token_cache(run: Run, tokenizer: DualTokenizer, frozen: Any,
                 tokenizers: Mapping[str, str]) -> token_cache.TokenCache | None:
    """Returns the training tokens of stage 2; None if every batch is tokenized on the fly."""
    c = run.config
    if c.data.tokens:
        encode.check(c.data.tokens, stages.token_description(c, run.train, tokenizers))
        return token_cache.TokenCache(c.data.tokens)
    if not c.data.token_examples:
        return None
    # The name of the folder changes with everything that the tokens are made from.
    description = stages.token_description(c, run.train, tokenizers, c.data.token_examples)
    return encode.write(Path(run.workdir, f"tokens_{description.digest}"), description, run.train, run.crops, tokenizer,
                        frozen, num_workers=c.data.num_workers)


def _sample_distance(run: Run) -> SampleDistance | None:
    """Makes the comparison that `evaluate.during_training` asks for, with the reference measured; None if it is 0."""
    e = run.config.evaluate
    if not e.during_training:
        return None
    extractor, reference = build.open_reference(run.config)
    measured = reference.measure(extractor, Path(run.workdir) / "evaluation")
    return SampleDistance(extractor=extractor, reference=measured, count=e.during_training,
                          batch_size=e.batch_size * run.mesh.size)


def _warm_start(prepared: Prepared, task: GeneratorTask, tokenizers: Mapping[str, str]) -> Callable[[Any], Any] | None:
    """Returns a function that puts the parameters of `generator.init_from` into the first state; None without it."""
    run, c = prepared.run, prepared.run.config
    source, new = c.generator.init_from, c.generator.init_classes == "new"
    if not source:
        return None

    def start(state):
        if differing := os.path.isdir(source) and stages.other_tokenizers(source, tokenizers):
            logging.warning("generator.init_from is %s, whose student was trained on other tokenizers (%s differ); it "
                            "has learned their tokens, not those of this run.", source, ", ".join(differing))
        student = prepared.student
        if student is None:
            student = parameters.student(c, run.num_classes, source, run.mesh, any_classes=new).params
        else:
            student = parameters.on_mesh(student, run.mesh)
        if new:
            logging.warning("generator.init_from is %s: the embedding of its %d classes is replaced by a new one of "
                            "%d. The null class and all other parameters are kept.", source,
                            len(student["class_embedding"]) - 1, run.num_classes)
        return task.warm_start(state, student, new)

    return start


def summary(workdir: str) -> str:
    """Formats the last evaluations of a workdir's stages as tables."""
    tables = []
    for stage in STAGES:
        if numbers := read_json(Path(workdir, stage, "evaluation.json")):
            tables.append(evaluations.text(stage, numbers))
    return "\n\n".join(tables)


def conclusion(workdir: str) -> str:
    """Says in words what the last evaluations of both stages mean, and where their files lie."""
    tokenizer, generator = (read_json(Path(workdir, stage, "evaluation.json")) or {} for stage in STAGES)
    lines = [*evaluations.in_words(tokenizer, generator)]
    pictures = ", ".join(str(Path(workdir, stage, "pictures")) for stage in STAGES
                         if Path(workdir, stage, "pictures").is_dir())
    lines.append(f"Pictures are in {pictures}; metrics and checkpoints lie next to them.")
    return "\n".join(lines)
