"""`--mode=aliasing`: measures aliasing in a run's views, tokenizer and generated images, and the gates of its teacher.

The views need only a config and its data. Each further part is measured if the workdir has what it needs.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from refocus_jax import pretrained
from refocus_jax.config import build, check, stages
from refocus_jax.data import pictures, pipeline, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import ArraySource, Source
from refocus_jax.evaluation import image_sets
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.focus import GRID_SIZES, Pyramid
from refocus_jax.instruments import patterns, resolution, spectra, views, wiener
from refocus_jax.instruments.views import SHOWN
from refocus_jax.models.tokenizer import to_unit_range
from refocus_jax.pretrained.choice import choose_tokenizer, has_started
from refocus_jax.reporting.findings import Findings
from refocus_jax.runtime import extras, processes
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.training import loop

# The paper's pyramids, which are for images of 256 px.
PRESETS = {name: Pyramid(grid_sizes=GRID_SIZES[name], stride=16, rho_max=12.0) for name in ("var10", "k4")}
_TRIED = 16  # images that are tried for each one that must be large enough
_CELL = 128  # smallest side of a view in the pictures, in pixels


def run(c: ConfigDict, workdir: str) -> None:
    """Measures everything that config, workdir and data permit, prints the tables and writes WORKDIR/aliasing.

    Raises:
      ValueError: A setting is out of range, or there are several processes.
      FileNotFoundError: `aliasing.samples` has no images.
      ImportError: The extra `report` is not installed.
    """
    processes.check_alone("aliasing")
    extras.require("--mode=aliasing", "report", {"matplotlib": "matplotlib"})
    check.check_ranges(c)
    trained, class_names = pretrained.load_config(workdir) if has_started(workdir) else (c, ())
    optics = build.tokenizer(trained).optics
    found, data = Findings(), Data(c)
    # Opened before anything is measured, because they may be invalid.
    path = c.aliasing.samples or _newest_images(workdir)
    generated = image_sets.of_path("aliasing.samples" if c.aliasing.samples else
                                   "aliasing.samples, by default the newest images,", path) if path else None
    held_out = None if generated is None else data.held_out(len(generated.images[0]))
    tokenizer = _load_tokenizer(found, c, workdir)
    if tokenizer is not None and _has_gates(trained, workdir):
        stages.check_tokenizers(workdir, tokenizer.digests, trained.tokenizer.pretrained)
    crops = _views(found, data, optics)
    if trained.tokenizer.model.pyramid == "var":
        found.skipped.append("the scales of VAR's pyramid, which are area averages of one encoding of the image, not "
                             "views")
    if tokenizer is not None:
        _tokenizer(found, tokenizer)
    if generated is None:
        found.skipped.append("generated images: --mode=sample and --mode=evaluate have written no PNG or npz files, "
                             "and aliasing.samples is not given")
    else:
        assert held_out is not None
        powers = {"data": spectra.measure(held_out.images, held_out.says),
                  "generated": spectra.measure(generated.images, generated.says)}
        found.add([spectra.table(powers, "data")], [spectra.chart(powers)])
    gains = wiener.gains(optics, crops)
    found.add(*wiener.gain_tables_and_charts(gains, optics.grid_sizes))
    _teacher(found, data, trained, class_names, workdir, tokenizer, gains)
    found.write(Path(workdir) / "aliasing" / "aliasing.json", {
        "source": c.data.source, "images": len(crops), "optics": dataclasses.asdict(optics), "generated": path})
    found.print()
    if path:
        print(f"Generated images: {path}")
    print(f"{len(found.charts)} charts, {len(found.pictures)} pictures and aliasing.json in {workdir}/aliasing")


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a config's source.

    Attributes:
      config: The config.
    """

    config: ConfigDict

    def source(self, split: str) -> Source:
        """Opens a split of the source, "train" or "validation"."""
        return sources.load(self.config.data.source, split, build.source_settings(self.config))

    def rule(self, side: int, **changes: Any) -> CropRule:
        """Returns the config's crop rule with another image size and other changes."""
        return dataclasses.replace(build.crop_rule(self.config), image_size=side, **changes)

    def crops(self, side: int, enlarge: bool) -> list[np.ndarray]:
        """Returns crops of training images; optics are not trained, so they need not be held out.

        Args:
          side: The side of the crops, in pixels.
          enlarge: Whether smaller images may be enlarged. Otherwise only large enough images are used.

        Returns:
          Up to `aliasing.images` crops (side, side, 3) in [-1, 1]; none if all images are too small.
        """
        source, count = self.source("train"), self.config.aliasing.images
        if not enlarge:
            source = _at_least(source, max(self.config.data.resize_ratio, 1.0) * side, count)
        if not len(source):
            return []
        crops = pipeline.spread_crops(source, self.rule(side, crops_per_image=-(-count // len(source))))
        return [np.asarray(to_unit_range(example["image"])) for example in crops[:count]]

    def held_out(self, side: int) -> ImageSet:
        """Returns held-out crops as the evaluations during training use them, but of any size."""
        d = self.config.data
        return image_sets.of_source(self.source("validation"), f"held-out images of {d.source}", self.rule(side),
                                    d.validation_examples)


def _at_least(source: Source, side: float, count: int) -> ArraySource:
    """Finds up to `count` images of a source whose short side is at least `side`."""
    order = np.random.default_rng(0).permutation(len(source))[:_TRIED * count]
    large = []
    for record in (source[int(index)] for index in order):
        if min(record["image"].shape[:2]) >= side:
            large.append(record)
        if len(large) == count:
            break
    return ArraySource([r["image"] for r in large], [r["label"] for r in large], source.class_names)


def _views(found: Findings, data: Data, optics: Pyramid) -> list[np.ndarray]:
    """Measures the run's grids and the presets on photographs and the zone plate; returns crops of the run's size."""
    crops = {optics.image_size: data.crops(optics.image_size, enlarge=True)}
    for title, pyramid in {"this run's grids": optics, **PRESETS}.items():
        size, grids = pyramid.image_size, pyramid.grid_sizes
        own: str | None = views.name_of(pyramid)
        variants = views.combinations(grids, pyramid.stride, pyramid.rho_max)
        if title in PRESETS:
            own = None
            if optics in variants.values():
                continue  # the same as the run's grids, which are measured already
        if size not in crops:
            crops[size] = data.crops(size, enlarge=False)
        found.tables.append(views.radii_table(f"{title} at {size} px", grids, pyramid.rho_max))
        plate = np.repeat(patterns.zone_plate(size)[..., None], 3, axis=-1)
        for what, images in (("photographs", crops[size]), ("zone plate", [plate])):
            if not images:
                found.skipped.append(f"{title} on photographs: the source has none of {size} px")
                continue
            powers, heading = views.measure(variants, images), f"{title} at {size} px, {what}"
            found.add(views.tables(heading, powers, grids, own), views.charts(heading, powers, grids, own))
        shown = {name: variants[name] for name in SHOWN if name in variants}
        note = "A perfect view shows only the rings around the centre. All other rings are aliases."
        found.pictures.append((f"zone plate through {title}", note, _zone_plate_picture(plate, shown)))
    return crops[optics.image_size]


def _zone_plate_picture(plate: np.ndarray, pyramids: dict[str, Pyramid]) -> np.ndarray:
    def focused(image):
        return [[view.focused[0] for view in pyramid.views(image)[:-1]] for pyramid in pyramids.values()]

    some = next(iter(pyramids.values()))
    side = max(_CELL, some.image_size // 2)
    cells = [[pictures.enlarge(pictures.to_uint8(view), side, smooth=False) for view in views]
             for views in jax.device_get(jax.jit(focused)(jnp.asarray(plate[None])))]
    return pictures.grid(cells, list(pyramids), [f"p = {p}" for p in some.grid_sizes[:-1]])


def _load_tokenizer(found: Findings, c: ConfigDict, workdir: str) -> pretrained.Tokenizer | None:
    """Loads the tokenizer of the workdir or of `tokenizer.pretrained`; None if there is neither."""
    try:
        return choose_tokenizer(c, workdir)
    except FileNotFoundError as error:
        if c.tokenizer.pretrained:
            raise
        found.skipped.append(f"a tokenizer: {error}")
        return None


def _tokenizer(found: Findings, tokenizer: pretrained.Tokenizer) -> None:
    """Measures what encoding and decoding do to gratings, a zone plate, edges and text."""
    size = tokenizer.model.optics.image_size

    def reconstruct(images: np.ndarray) -> np.ndarray:
        return np.asarray(tokenizer.decode(tokenizer.encode(images)))

    plate = patterns.zone_plate(size)
    edges = resolution.slanted_edges(size) if size >= resolution.MIN_EDGE_SIZE else {}
    texts = {height: text for height in resolution.TEXT_HEIGHTS
             if (text := patterns.text(size, height, resolution.TEXT_REPEATS)) is not None}
    if not edges:
        found.skipped.append(f"slanted edges: images of {size} px are too small")
    if not texts:
        found.skipped.append(f"text: images of {size} px are too small")
    decoded_plate, *decoded_edges = resolution.reconstruct_grey(reconstruct, [plate, *edges.values()])
    decoded_pages = {height: resolution.reconstruct_grey(reconstruct, list(text.pages))
                     for height, text in texts.items()}

    def mtf(name: str, edge: np.ndarray) -> resolution.Mtf | None:
        return resolution.edge_mtf(edge.T if name == "horizontal" else edge)

    mtfs = {name: (mtf(name, edge), mtf(name, decoded))
            for name, edge, decoded in zip(edges, edges.values(), decoded_edges, strict=True)}
    errors = {height: (len(text.characters), resolution.character_error(text, text.pages),
                       resolution.character_error(text, decoded_pages[height])) for height, text in texts.items()}
    found.add(*resolution.tables_and_charts(resolution.gratings(reconstruct, size),
                                            resolution.zone_plate_moire(plate, decoded_plate), mtfs, errors))
    shown = [[plate, *edges.values()], [decoded_plate, *decoded_edges]]
    found.pictures.append(("tokenizer: zone plate and slanted edges", "Original and decoded.",
                           _grey_picture(shown, ["zone plate", *edges])))
    if texts:
        shown = [[text.pages[0] for text in texts.values()], [pages[0] for pages in decoded_pages.values()]]
        found.pictures.append(("tokenizer: text", "Original and decoded.",
                               _grey_picture(shown, [f"{height} px" for height in texts])))


def _grey_picture(rows: list[list[np.ndarray]], columns: list[str]) -> np.ndarray:
    cells = [[np.repeat(pictures.to_uint8(image)[..., None], 3, axis=-1) for image in row] for row in rows]
    side = max(_CELL, len(cells[0][0]))
    return pictures.grid([[pictures.enlarge(cell, side, smooth=False) for cell in row] for row in cells],
                         ["image", "decoded"], columns)


def _newest_images(workdir: str) -> str:
    """Returns what --mode=sample or --mode=evaluate wrote last in the workdir; "" if there is nothing."""
    found = [path for name in ("samples/png", "samples/samples.npz", "evaluation/*/samples.npz")
             for path in Path(workdir).glob(name)]
    return str(max(found, key=os.path.getmtime)) if found else ""


def _has_gates(trained: ConfigDict, workdir: str) -> bool:
    teacher = trained.generator.teacher
    return teacher.enabled and teacher.gate == "learned" and os.path.isdir(
        os.path.join(workdir, "generator", "checkpoints"))


def _teacher(found: Findings, data: Data, trained: ConfigDict, class_names: tuple[str, ...], workdir: str,
             tokenizer: pretrained.Tokenizer | None, gains: list[wiener.ScaleGains]) -> None:
    """Measures the gates of a trained teacher on held-out images."""
    if tokenizer is None or not _has_gates(trained, workdir):
        found.skipped.append("gates: no teacher with gates has been trained in this workdir")
        return
    task, mesh = build.generator_task(trained, len(class_names)), mesh_lib.make_mesh()
    with Checkpoints(os.path.join(workdir, "generator", "checkpoints")) as saved:
        template, step = {"params": loop.abstract_state(task, mesh).params}, data.config.resume_step
        params = saved.restore(template, step=None if step == -1 else step, partial=True)["params"]

    @jax.jit
    def gates(params, frozen, batch):
        structure, alias = task.tokens(frozen, batch)
        inputs = task.inputs(frozen, structure)
        _, captured = task.student_logits(params, batch["label"], inputs)
        return task.teach(params, frozen, captured, batch["label"], inputs, alias)[0].gates

    batches = pipeline.validation_batches(data.source("validation"), data.rule(trained.image_size), batch_size=1,
                                          limit=data.config.aliasing.images)
    alpha = np.concatenate([jax.device_get(gates(params, tokenizer.params, batch)) for batch in batches], axis=1)
    offsets = np.array(task.student.offsets[-1 - task.teacher.num_alias_scales:]) - task.first_alias_token
    found.add(*wiener.gate_tables_and_charts(wiener.gates(alpha, offsets.tolist()), gains, task.student.grid_sizes))
