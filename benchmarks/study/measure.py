"""Measures a finished row: everything that the tables need, as one JSON object without paths of this machine."""

import dataclasses
import fcntl
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.study import runs
from benchmarks.study.recipes import Study
from benchmarks.study.rows import ROWS, TOKENIZERS
from refocus_jax.config import build, saved
from refocus_jax.config.run import Run, open_run
from refocus_jax.modes import evaluate
from refocus_jax.pretrained import parameters
from refocus_jax.reporting import runs as recorded
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.files import read_json, write_json
from refocus_jax.training import encode, loop
from refocus_jax.training.evaluators import GeneratorEvaluator

REFERENCES = ("validation", "train")


def measure(study: Study, name: str, seed: int) -> None:
    """Measures a row and writes its result."""
    row, workdir = ROWS[name], study.workdir(name, seed)
    c, _ = saved.read(workdir)
    run = open_run(c, str(workdir))
    numbers, images = _of_tokens(run)
    _measure_references(study, c)
    runs.link_references(study, workdir)
    for prefix, found in _evaluations(study, c, workdir):
        numbers |= {f"{prefix}/{metric}": value for metric, value in found.items()}
    tokenizer = study.tokenizer(row.tokenizer, seed)
    steps = {"tokenizer": tokenizer.load().tokenizer.train.steps, "generator": c.generator.train.steps}
    curves = recorded.read(workdir).stages["generator"].curves
    seconds = {"tokenizer": study.tokenizer_workdir(row.tokenizer, seed), "generator": workdir}
    write_json(study.result(name, seed), {
        "row": name, "seed": seed, "block": row.block, "base": study.base, "settings": dict(study.settings),
        "tokenizer": dataclasses.asdict(TOKENIZERS[row.tokenizer]) | {"name": row.tokenizer},
        "generator": {"arguments": row.arguments, "settings": dict(row.settings)},
        "data": {"source": _without_folder(study.data), "train": run.train.fingerprint,
                 "validation": run.validation.fingerprint, "classes": list(run.train.class_names)},
        "judge": _judge(study, c), "guidance": list(study.guidance), "steps": steps, "numbers": numbers,
        "images": images,
        "curves": {metric: {"steps": curve.steps.tolist(), "values": curve.values.tolist()}
                   for metric, curve in curves.items() if metric.startswith("validation/")},
        "processor_seconds": {stage: (read_json(directory / runs.SECONDS) or {}).get(stage)
                              for stage, directory in seconds.items()}})


def _without_folder(data: str) -> str:
    kind, colon, path = data.partition(":")
    return f"{kind}{colon}{Path(path).name}"


def _judge(study: Study, c: ConfigDict) -> str:
    c = c.copy_and_resolve_references()
    c.evaluate.features = study.features[-1]
    return build.open_reference(c)[0].distance


def _of_tokens(run: Run) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures cross-entropies of held-out tokens.

    Returns:
      Numbers by name: those of the last evaluation of training, and the teacher's difference from the student with the
      image's own alias tokens and with those of another image of the class. Then the same per image, for a bootstrap:
      the mean over the crops of each, with its class and the number of crops.
    """
    c, workdir = run.config, run.workdir
    task = build.generator_task(c, run.num_classes)
    frozen = parameters.tokenizer(c, c.tokenizer.pretrained or workdir, run.mesh).params
    params = _parameters(run, task)
    held_out = encode.encode_batches(task.tokenizer, frozen, run.validation_batches("generator"), run.mesh)
    evaluator = GeneratorEvaluator(
        task=task, validation=held_out, train=None, class_names=run.train.class_names, mesh=run.mesh,
        sampling=build.sampling_settings(c), batch_size=c.generator.train.batch_size)
    # Held-out crop i is of image i modulo the number of images, see `pipeline.spread_crops`.
    image = np.arange(len(held_out)) % len(run.validation)
    crops = np.bincount(image)
    assert (held_out.label == held_out.label[image]).all()

    def per_image(values: np.ndarray) -> list[float]:
        return (np.bincount(image, values) / crops).tolist()

    # Without a teacher there is nothing to read.
    evidences = ("none",) if task.teacher.alias == "none" or not task.teacher.enabled else ("own", "class")
    found = {}
    for evidence in evidences:
        reading = dataclasses.replace(task, teacher=dataclasses.replace(task.teacher, alias=evidence))
        found[evidence] = dataclasses.replace(evaluator, task=reading).per_token(params, frozen)
    losses = found[evidences[0]]["losses"]
    differences = {evidence: (one["teacher"] - losses[:, task.first_alias_token:]).mean(1)
                   for evidence, one in found.items() if "teacher" in one}
    scales = {f"scale_{k + 1}": losses[:, a:b].mean(1)
              for k, (a, b) in enumerate(itertools.pairwise(task.student.offsets))}
    scales |= {"last": scales[f"scale_{len(scales)}"], "all": losses.mean(1)}
    stage = recorded.read(workdir).stages["generator"].evaluation
    numbers = {metric.removeprefix("validation/"): value for metric, value in stage.items() if metric != "step"}
    numbers |= {f"cross_entropy/{scale}": float(values.mean()) for scale, values in scales.items()}
    numbers |= {f"teacher_minus_student/{evidence}": float(values.mean()) for evidence, values in differences.items()}
    return numbers, {
        "class": held_out.label[:len(crops)].tolist(), "crops": crops.tolist(),
        "cross_entropy": {scale: per_image(values) for scale, values in scales.items()},
        "teacher_minus_student": {evidence: per_image(values) for evidence, values in differences.items()}}


def _parameters(run: Run, task) -> dict[str, Any]:
    """Restores the parameters of student and teacher that an evaluation of training uses."""
    state = loop.abstract_state(task, run.mesh)
    with Checkpoints(Path(run.directory("generator"), "checkpoints")) as checkpoints:
        params = checkpoints.restore({"params": state.params}, partial=True)["params"]
    # The average if there is one.
    return {**params, "student": parameters.student(run.config, run.num_classes, run.workdir, run.mesh).params}


def _measure_references(study: Study, c: ConfigDict) -> None:
    """Measures the references of all rows if no row has done so; other processes wait for it."""
    study.references.mkdir(exist_ok=True)
    with open(study.references / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for features, reference in itertools.product(study.features, REFERENCES):
            changed = c.copy_and_resolve_references()
            changed.evaluate.update(features=features, reference=reference)
            extractor, opened = build.open_reference(changed)
            opened.measure(extractor, study.references)


def _evaluations(study: Study, c: ConfigDict, workdir: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Runs `--mode=evaluate` with every guidance, judge and reference; yields a prefix and the numbers it wrote."""
    for guidance, features, reference in itertools.product(study.guidance, study.features, REFERENCES):
        changed = c.copy_and_resolve_references()
        changed.sampling.cfg = guidance
        # The tokenizer is needed once for its own numbers, and for each distance of samples to reconstructions.
        parts = ("tokenizer", "generator") if reference == "validation" else ("generator",)
        changed.evaluate.update(features=features, reference=reference, parts=parts)
        evaluate.run(changed, str(workdir))
        found = read_json(workdir / "evaluation.json", ("generator", "tokenizer"))
        assert found is not None  # it has just been written
        yield f"guidance_{guidance:g}/{reference}", found["generator"]
        if found["tokenizer"] and guidance == study.guidance[0]:
            yield "tokenizer", found["tokenizer"]
