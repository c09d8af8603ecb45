"""A run: a config with its data, its devices and its directory."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build, check, stages
from refocus_jax.config.base import STAGES
from refocus_jax.data import pipeline, sources, token_cache
from refocus_jax.data.crops import CropRule
from refocus_jax.data.pipeline import Batches
from refocus_jax.data.records import Source
from refocus_jax.models.randomness import seed_of
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import processes
from refocus_jax.runtime.files import read_json, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A config with the images, devices and directory that it names.

    Attributes:
      config: All settings.
      workdir: The directory of the run.
      train: The training images.
      validation: The held-out images.
      mesh: The mesh of devices.
      resumes: The stage that `resume_step` refers to.
    """

    config: ConfigDict
    workdir: str
    train: Source
    validation: Source
    mesh: Any
    resumes: str = "generator"

    @property
    def key(self) -> jax.Array:
        """The random key of the run, from `seed`."""
        return jax.random.key(self.config.seed)

    @property
    def num_classes(self) -> int:
        """The number of classes of the training images."""
        return len(self.train.class_names)

    @property
    def crops(self) -> CropRule:
        """How images become crops."""
        return build.crop_rule(self.config)

    def resume_step(self, stage: str) -> int:
        """Returns the step of the checkpoint that a stage goes on from; -1 for the latest."""
        return self.config.resume_step if stage == self.resumes else -1

    def directory(self, stage: str) -> str:
        """Returns the directory of a stage."""
        return os.path.join(self.workdir, stage)

    def batches(self, stage: str) -> Batches:
        """Returns the endless batches of training images of a stage."""
        c = self.config
        return pipeline.training_batches(self.train, self.crops, batch_size=c[stage].train.batch_size,
                                         seed=seed_of(c.seed, f"{stage} images"), num_workers=c.data.num_workers)

    def validation_batches(self, stage: str) -> Batches:
        """Returns the held-out images in batches of the size that a stage trains on."""
        c = self.config
        return pipeline.validation_batches(self.validation, self.crops, batch_size=c[stage].train.batch_size,
                                           limit=c.data.validation_examples)

    def made_with(self, stage: str, tokenizers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Describes what a stage is made with, for its checkpoints.

        Args:
          stage: "tokenizer" or "generator".
          tokenizers: Digests of the tokenizers that stage 2 is trained on.
        """
        c, tokens = self.config, None
        if stage == "generator" and c.data.tokens:
            tokens = token_cache.describe(c.data.tokens)
        elif stage == "generator" and c.data.token_examples:
            tokens = stages.token_description(c, self.train, tokenizers or {}, c.data.token_examples)
        return stages.made_with(c, stage, self.train, tokenizers=tokenizers, tokens=tokens)

    def check_stages(self) -> None:
        """Raises a ValueError if a setting differs from a trained stage's that must be the same."""
        c = self.config
        for stage in STAGES:
            if before := stages.trained(self.workdir, stage, self.resume_step(stage)):
                unused = stage == "tokenizer" and c.tokenizer.pretrained
                goes_on = not unused and before.step < c[stage].train.steps
                stages.check(self.workdir, stage, before, self.made_with(stage), goes_on)

    def write_config(self) -> None:
        """Writes config.json into the workdir.

        Raises:
          ValueError: The config.json that is there is damaged. It is not overwritten.
        """
        path = Path(self.workdir, "config.json")
        read_json(path)
        write_json(path, json.loads(self.config.to_json()) | {"class_names": list(self.train.class_names)})


def open_run(c: ConfigDict, workdir: str, resumes: str = "generator") -> Run:
    """Checks the settings and opens the images, without writing anything.

    Args:
      c: The config.
      workdir: The directory of the run.
      resumes: The stage that `resume_step` refers to.

    Raises:
      FileNotFoundError: There is no checkpoint of `resume_step`.
      ValueError: Settings or data contradict each other, or the stages that have been trained.
    """
    workdir = check.check_workdir(workdir)
    mesh = mesh_lib.make_mesh(**c.mesh)
    check.check(c, mesh.size)
    build.tokenizer_task(c), build.sampling_settings(c), build.draw_settings(c)
    train, validation = sources.load_splits(c.data.source, build.source_settings(c))
    seen = (f"{len(train)} images to train on (fingerprint {train.fingerprint}), {len(validation)} held out "
            f"({validation.fingerprint}), classes {', '.join(train.class_names)}")
    processes.check_same(f"data.source {c.data.source}", seen)
    found = len(train.class_names)
    if c.data.num_classes is not None and c.data.num_classes != found:
        raise ValueError(f"data.num_classes is {c.data.num_classes}, but {c.data.source} has {found} classes; leave "
                         "it out to use the source's")
    build.generator_task(c, found)
    run = Run(config=c, workdir=workdir, train=train, validation=validation, mesh=mesh, resumes=resumes)
    run.check_stages()
    return run
