"""Where the parameters of a config's networks come from: workdirs, official VAR files, installed ones."""

import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.models import official_var
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.files import read_json
from refocus_jax.training import loop


class Found(NamedTuple):
    """Parameters, and the step of the checkpoint that they were restored from; None if they are from a file."""

    params: Any
    step: int | None = None


def _check_fit(source: str, found: Any, expected: Any, names: dict[str, str]) -> None:
    """Raises a ValueError if modules differ in these attributes; `names` are those of the settings."""
    problems = [f"{name} is {getattr(found, attribute)!r}, the config's {getattr(expected, attribute)!r}"
                for attribute, name in names.items() if getattr(found, attribute) != getattr(expected, attribute)]
    if problems:
        raise ValueError(f"{source} does not fit the config: {'; '.join(problems)}. Change the config, or take another "
                         "file; parameters are never initialized instead of loaded without a word")


def tokenizer(c: ConfigDict, source: str, mesh) -> Found:
    """The `DualTokenizer` parameters of a workdir's latest checkpoint, or of an official VQVAE's file.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        return Found(mesh_lib.put_whole(_official_tokenizer(c, source), mesh_lib.replicated(mesh)))
    with Checkpoints(os.path.join(source, "tokenizer", "checkpoints")) as checkpoints:
        restored = checkpoints.restore(_tokenizer_template(c, mesh), partial=True)
        return Found(restored["params"], checkpoints.latest_step())


def check_tokenizer(c: ConfigDict, workdir: str, mesh) -> None:
    """Raises what `tokenizer` would, but reads no array."""
    with Checkpoints(os.path.join(workdir, "tokenizer", "checkpoints")) as checkpoints:
        checkpoints.check_fit(_tokenizer_template(c, mesh), partial=True)


def _official_tokenizer(c: ConfigDict, source: str) -> Any:
    """On the host."""
    if c.generator.teacher.enabled:
        raise ValueError(f"tokenizer.pretrained is {source}, which has no alias tokenizer, and "
                         "generator.teacher.enabled is True; set generator.teacher.enabled=False, or leave "
                         "tokenizer.pretrained out to train tokenizers")
    expected = build.tokenizer(c).structure
    found, params = official_var.import_tokenizer(
        weight_files.read(source, official_var.is_tokenizer), c.grid_sizes, c.tokenizer.model.norm_groups)
    _check_fit(source, found.autoencoder, expected.autoencoder, {
        name: f"tokenizer.model.{name}" for name in ("channels", "channel_multipliers", "num_residual_blocks")})
    _check_fit(source, found.quantizer, expected.quantizer, {
        name: f"tokenizer.model.{name}" for name in ("vocab_size", "latent_channels", "num_phi", "residual")})
    return {"structure": params}


def _tokenizer_template(c: ConfigDict, mesh) -> Any:
    params = jax.eval_shape(build.tokenizer_task(c).init, jax.random.key(0)).params
    return {"params": mesh_lib.abstract(params, mesh_lib.replicated(mesh))}


def student(c: ConfigDict, num_classes: int, source: str, mesh, *, any_classes: bool = False) -> Found:
    """The student's parameters of a workdir's latest checkpoint (their average if it has one), or of a VAR's file.

    Args:
      any_classes: the source may have any number of classes.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        return Found(on_mesh(official_student(c, num_classes, source, any_classes), mesh))
    with Checkpoints(os.path.join(source, "generator", "checkpoints")) as checkpoints:
        template = _student_template(c, num_classes, source, checkpoints, mesh, any_classes)
        restored = checkpoints.restore(template, partial=True)
        params = restored["average"] if "average" in restored else restored["params"]["student"]
        return Found(params, checkpoints.latest_step())


def check_student(c: ConfigDict, num_classes: int, workdir: str, mesh, *, any_classes: bool = False) -> None:
    """Raises what `student` would, but reads no array."""
    with Checkpoints(os.path.join(workdir, "generator", "checkpoints")) as checkpoints:
        template = _student_template(c, num_classes, workdir, checkpoints, mesh, any_classes)
        checkpoints.check_fit(template, partial=True)


def official_student(c: ConfigDict, num_classes: int, source: str, any_classes: bool) -> Any:
    """The parameters of an official VAR's file, on the host; raises as `student`."""
    expected = build.student(c, num_classes)
    found, params = official_var.import_transformer(
        weight_files.read(source, official_var.is_transformer), c.grid_sizes, c.generator.model.num_heads)
    _check_fit(source, found, expected, {"vocab_size": "tokenizer.model.vocab_size",
                                         "latent_channels": "tokenizer.model.latent_channels"} | {
        name: f"generator.model.{name}" for name in ("depth", "width", "num_heads", "qk_norm", "shared_modulation")})
    _check_classes(source, found.num_classes, num_classes, any_classes)
    return params


def on_mesh(params: Any, mesh) -> Any:
    """Parameters from the host, on the devices of a mesh as a training keeps them."""
    return mesh_lib.put_whole(params, mesh_lib.parameter_shardings(mesh, params))


def _student_template(c: ConfigDict, num_classes: int, source: str, checkpoints: Checkpoints, mesh,
                      any_classes: bool) -> Any:
    described = read_json(os.path.join(source, "config.json"))
    source_classes = len(described["class_names"]) if described else num_classes
    _check_classes(source, source_classes, num_classes, any_classes)
    params = loop.abstract_state(build.generator_task(c, source_classes), mesh).params["student"]
    # The source's config, and not `c`, has decided whether there is an average.
    return {"average": params} if "average" in checkpoints.parts() else {"params": {"student": params}}


def _check_classes(source: str, found: int, expected: int, any_classes: bool) -> None:
    if found != expected and not any_classes:
        raise ValueError(f"{source} does not fit the config: it has {found} classes, and the data {expected}. Set "
                         "generator.init_classes=new to start their embedding with new numbers, or give data of its "
                         "classes")


def perceptual(c: ConfigDict) -> Any:
    """What stage 1 takes as frozen: the parameters of the perceptual network; None without one.

    Raises:
      FileNotFoundError: no such file. ValueError: it is damaged or another network's.
    """
    if build.tokenizer_task(c).frozen_shapes is None:
        return None
    try:
        return build.perceptual_network(c).load()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"tokenizer.perceptual_network is {c.tokenizer.perceptual_network!r}: {error}; or set "
                          "tokenizer.perceptual_network=none") from error
