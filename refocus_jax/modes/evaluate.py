"""`--mode=evaluate`: measures checkpoints or existing images and writes the numbers to WORKDIR/evaluation.json.

Results that take long to compute (samples, their features and those of the reference, reconstructions) are kept in
WORKDIR/evaluation under names that change with everything that they depend on. A second call reuses them, says so, and
computes only what has changed; an interrupted call continues with the missing samples. All processes and all their
devices share the work.
"""

import dataclasses
import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import refocus_jax
from refocus_jax.config import build, check
from refocus_jax.evaluation import comparison, digests, image_sets, measurements, metrics
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.evaluation.reconstructions import Reconstruct, code_counts
from refocus_jax.evaluation.reference import Reference
from refocus_jax.evaluation.samples import DrawSettings
from refocus_jax.judges.features import Extractor
from refocus_jax.pretrained import Generator, Tokenizer
from refocus_jax.pretrained.choice import choose_generator, choose_tokenizer, has_generator
from refocus_jax.pretrained.drawing import draw_identity, draw_into
from refocus_jax.reporting import evaluations
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import processes
from refocus_jax.runtime.files import write_json
from refocus_jax.sampling.decode import SamplingSettings

_Generator = tuple[Generator, dict[str, Any]]  # a generator and a record of where it comes from

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow")
_LOOKED_AT = {
    "inception": "Features of FID's Inception; images are resized to 299 x 299 by TensorFlow 1's bilinear method.",
    "efficientnet_lite0": "Features of EfficientNet-Lite0; images are resized to 224 x 224 by bicubic interpolation. "
                          "Their Fréchet distance is FD-EffLite0: it is not an FID and cannot be compared with FIDs.",
    "efficientnet_lite1": "Features of EfficientNet-Lite1, which is in no loss; images are resized to 240 x 240 by "
                          "bicubic interpolation. Their Fréchet distance cannot be compared with FIDs.",
}


def run(c: ConfigDict, workdir: str) -> None:
    """Measures tokenizer and generator of a workdir (`evaluate.parts`), or the images of `evaluate.samples`.

    Raises:
      ValueError: A setting is out of range, or settings do not fit each other.
      FileNotFoundError: A path does not exist, or there is nothing to evaluate.
    """
    check.check_ranges(c)
    directory = Path(workdir) / "evaluation"
    # Everything that can be wrong with settings and paths is checked before work begins.
    sampling = build.sampling_settings(c)
    given = image_sets.of_path("evaluate.samples", c.evaluate.samples) if c.evaluate.samples else None
    extractor, reference = build.open_reference(c)
    tokenizer, generator, notes = (None, None, []) if given else _load(c, workdir)
    notes.append(_LOOKED_AT[extractor.name])
    steps = {"tokenizer": tokenizer and tokenizer.step, "generator": generator and generator[0].step}
    result: dict[str, Any] = {"tokenizer": {}, "generator": {}, "settings": _settings(c), "steps": steps}
    reconstructions = None
    if tokenizer:
        held_out = build.reference_settings(c).crops("validation")
        reconstructions = _reconstructions(c, tokenizer, held_out, extractor, directory)
        originals = Reference.of(measurements.of_features(held_out, extractor, directory))
        result["tokenizer"] = _of_tokenizer(tokenizer, reconstructions, originals, extractor.distance)
        notes.append(f"Reconstructions: of {held_out.says}; rounded to 8 bits.")
        if "ssim" not in result["tokenizer"]:
            notes.append(f"No SSIM: the images are smaller than its window of {metrics.SSIM_WINDOW} pixels.")
    if generator:
        given, result["samples"] = _draw(c, sampling, *generator, directory)
    elif given:
        result["samples"] = {"path": c.evaluate.samples}
    if given:
        columns = measurements.of_features(given, extractor, directory)
        measured = reference.measure(extractor, directory)
        result["generator"] = comparison.compare(columns, measured, extractor.distance)
        if reconstructions is not None:
            distances = comparison.frechet(columns, Reference.of(reconstructions), extractor.distance)
            result["generator"] |= {f"{name}_to_reconstructions": value for name, value in distances.items()}
        result["samples"] |= {"count": len(given), "says": given.says}
        result["reference"] = {"from": c.evaluate.reference, "count": measured.moments["pool"].count,
                               "says": reference.says}
        notes += [f"Samples: {given.says}.", f"Reference: {reference.says}.",
                  *comparison.warnings(len(given), measured), *_warnings(given, reference.images)]
    result |= {"features": {name: getattr(extractor, name) for name in ("name", "distance", "source", "sha256")},
               "packages": {name: importlib.metadata.version(name) for name in _PACKAGES} | {
                   "refocus_jax": refocus_jax.__version__},
               "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "notes": notes}
    write_json(os.path.join(workdir, "evaluation.json"), result)
    if jax.process_index() == 0:
        print(summary(result))


def summary(result: Mapping[str, Any]) -> str:
    """Prints the content of an evaluation.json as text: a table for each part, then the notes."""
    tables = []
    for name in ("tokenizer", "generator"):
        step = result["steps"].get(name)
        if result[name]:
            tables.append(evaluations.text(name, result[name] if step is None else {"step": step} | result[name]))
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in result["notes"])])


def _settings(c: ConfigDict) -> dict[str, Any]:
    """Returns everything that the numbers depend on except images and weights."""
    return {"evaluate": c.evaluate.to_dict(), "sampling": c.sampling.to_dict(),
            "tokenizer.pretrained": c.tokenizer.pretrained, "generator.init_from": c.generator.init_from,
            "image_size": c.image_size, "inception_score_splits": comparison.SPLITS,
            "precision_recall_neighbours": comparison.NEIGHBOURS,
            "data": {name: c.data[name] for name in ("source", "resize_ratio", "crops_per_image")}}


def _warnings(samples: ImageSet, reference: ImageSet | None) -> list[str]:
    """Lists properties of the images that change distances but have nothing to do with what the images show."""
    said = [f"Samples: {warning}" for warning in processes.from_first(samples.warnings)]
    if reference is not None:
        said += [f"Reference: {warning}" for warning in processes.from_first(reference.warnings)]
        (height, width), (other_height, other_width) = (images.images[0].shape[:2] for images in (samples, reference))
        if (height, width) != (other_height, other_width):
            said.append(f"Samples are of {width} x {height} pixels, and the reference of {other_width} x "
                        f"{other_height}: the network resizes both, so distances also measure the difference in "
                        "sharpness.")
    return said


def _load(c: ConfigDict, workdir: str) -> tuple[Tokenizer | None, _Generator | None, list[str]]:
    """Loads the requested parts.

    Returns:
      The tokenizer, the generator with a record of where it comes from, and notes about missing parts.

    Raises:
      FileNotFoundError: There is none of them.
      ValueError: They are for images of another size than the config's.
    """
    tokenizer, generator, missing = None, None, []
    if has_generator(c, workdir) or "tokenizer" not in c.evaluate.parts:
        if "generator" in c.evaluate.parts:
            generator = choose_generator(c, workdir)
    elif "generator" in c.evaluate.parts:
        missing.append("No generator: stage 2 has no checkpoint yet.")
    if "tokenizer" in c.evaluate.parts:
        tokenizer = generator[0].tokenizer if generator else choose_tokenizer(c, workdir)
    for found in filter(None, (tokenizer, generator and generator[0].tokenizer)):
        if found.model.optics.image_size != c.image_size:
            raise ValueError(f"image_size is {c.image_size}, and the tokenizer's in {workdir} is "
                             f"{found.model.optics.image_size}; give the config that it was trained with")
    return tokenizer, generator, missing


def _draw(c: ConfigDict, sampling: SamplingSettings, generator: Generator, origin: dict[str, Any],
          directory: Path) -> tuple[ImageSet, dict[str, Any]]:
    """Draws the samples of a generator, or reuses those drawn before with the same weights and settings.

    Returns:
      The samples, and a record of what they depend on.
    """
    e = c.evaluate
    draw = DrawSettings(count=e.count, seed=e.seed, batch_size=e.batch_size * jax.device_count(), format="npz")
    identity = draw_identity(generator, sampling, draw)
    folder = directory / measurements.folder_name("samples", identity)
    path = folder / "samples.npz"
    kept = processes.from_first(lambda: _is_sound(path, directory / measurements.DIGESTS))
    if not kept:
        draw_into(folder, generator, sampling, draw, origin)
    samples = image_sets.of_path("evaluate.samples", str(path))
    step = "" if origin.get("step") is None else f", step {origin['step']}"
    guidance = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(sampling).items())
    says = f"{len(samples)} of {origin['generator']}{step} ({guidance}; seed {e.seed})"
    samples = dataclasses.replace(samples, says=says)
    if kept:
        measurements.say_kept("samples", samples, folder)
    return samples, origin | identity | {"path": str(path)}


def _is_sound(samples: Path, memory: Path) -> bool:
    """Returns whether samples exist and have not changed since they were drawn."""
    try:
        expected = json.loads(samples.with_name("samples.npz.json").read_bytes())["blake2b"]
        if digests.of_files([samples], memory) == [expected]:
            return True
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        pass
    logging.warning("%s has changed since it was drawn, and is drawn again", samples)
    return False


def _reconstructions(c: ConfigDict, tokenizer: Tokenizer, held_out: ImageSet, extractor: Extractor,
                     directory: Path) -> dict[str, np.ndarray]:
    """Measures the reconstructions of held-out images: arrays with a row per image, see `Reconstruct`."""
    mesh = extractor.mesh
    made_with = {"tokenizer": tokenizer.identity, "features": extractor.identity}
    measure = Reconstruct(tokenizer.model, mesh_lib.put_whole(tokenizer.params, mesh_lib.replicated(mesh)), extractor)
    return measurements.keep(directory, "reconstructions", made_with, held_out, measure,
                             c.evaluate.batch_size * mesh.size)


def _of_tokenizer(tokenizer: Tokenizer, columns: Mapping[str, np.ndarray], originals: Reference,
                  distance: str) -> dict[str, float]:
    """Computes the quality of reconstructions, compared with the features of their originals, and the use of codes."""
    numbers = {"psnr": metrics.psnr(columns["squared_error"])}
    if "ssim" in columns:
        numbers["ssim"] = float(columns["ssim"].mean(dtype=np.float64))
    distances = comparison.frechet(columns, originals, distance)
    numbers |= {f"reconstruction_{name}": value for name, value in distances.items()}
    for stream in ("structure", "alias"):
        if stream in columns:
            numbers |= metrics.codebook_use(stream, code_counts(columns[stream], tokenizer.model, stream))
    return numbers
