"""Trained parameters by where they come from: workdirs, official VAR files, and those that are installed."""

import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from refocus_jax import build
from refocus_jax.interop import var_state_dict
from refocus_jax.reporting import runs
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.training import loop


def _check_fit(source: str, found: Any, expected: Any, names: dict[str, str]) -> None:
    """Raises a ValueError if modules differ in these attributes; `names` are those of the settings."""
    problems = [f"{name} is {getattr(found, attribute)!r}, the config's {getattr(expected, attribute)!r}"
                for attribute, name in names.items() if getattr(found, attribute) != getattr(expected, attribute)]
    if problems:
        raise ValueError(f"{source} does not fit the config: {'; '.join(problems)}. Change the config, or take another "
                         "file; nothing is initialized anew in silence")


def load_tokenizer(c: ConfigDict, source: str, mesh) -> Any:
    """The `DualTokenizer` parameters of a workdir's latest checkpoint, or of an official VQVAE's file.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        if c.teacher.enabled:
            raise ValueError(f"tokenizer_from is {source}, which has no alias tokenizer, and teacher.enabled is True; "
                             "set teacher.enabled=False, or leave tokenizer_from out to train tokenizers")
        expected = build.tokenizer(c).structure
        found, params = var_state_dict.import_tokenizer(
            weight_files.read(source, var_state_dict.is_tokenizer), c.grid_sizes, c.tokenizer.norm_groups)
        _check_fit(source, found.autoencoder, expected.autoencoder, {
            name: f"tokenizer.{name}" for name in ("channels", "channel_multipliers", "num_residual_blocks")})
        _check_fit(source, found.quantizer, expected.quantizer, {
            name: f"tokenizer.{name}" for name in ("vocab_size", "latent_channels", "num_phi", "residual")})
        return mesh_lib.put_whole({"structure": params}, mesh_lib.replicated(mesh))
    with Checkpoints(os.path.join(source, "tokenizer", "checkpoints")) as checkpoints:
        return checkpoints.restore(_tokenizer_template(c, mesh), partial=True)["params"]


def check_tokenizer(c: ConfigDict, source: str, mesh) -> None:
    """Raises what `load_tokenizer` would, but reads no array of a workdir."""
    if weight_files.is_weight_file(source):
        load_tokenizer(c, source, mesh)
    else:
        with Checkpoints(os.path.join(source, "tokenizer", "checkpoints")) as checkpoints:
            checkpoints.check_fit(_tokenizer_template(c, mesh), partial=True)


def _tokenizer_template(c: ConfigDict, mesh) -> Any:
    params = jax.eval_shape(build.tokenizer_task(c).init, jax.random.key(0)).params
    return {"params": mesh_lib.abstract(params, mesh_lib.replicated(mesh))}


def load_student(c: ConfigDict, num_classes: int, source: str, mesh, *, any_classes: bool = False) -> Any:
    """The student's parameters of a workdir's latest checkpoint (their average if it has one), or of a VAR's file.

    Args:
      any_classes: the source may have any number of classes.

    Raises:
      FileNotFoundError: no such file or checkpoint. ValueError: it does not fit the config.
    """
    if weight_files.is_weight_file(source):
        expected = build.student(c, num_classes)
        found, params = var_state_dict.import_transformer(
            weight_files.read(source, var_state_dict.is_transformer), c.grid_sizes, c.generator.num_heads)
        _check_fit(source, found, expected, {"vocab_size": "tokenizer.vocab_size",
                                             "latent_channels": "tokenizer.latent_channels"} | {
            name: f"generator.{name}" for name in ("depth", "width", "num_heads", "qk_norm", "shared_modulation")})
        _check_classes(source, found.num_classes, num_classes, any_classes)
        return mesh_lib.put_whole(params, mesh_lib.parameter_shardings(mesh, params))
    with Checkpoints(os.path.join(source, "generator", "checkpoints")) as checkpoints:
        template = _student_template(c, num_classes, source, checkpoints, mesh, any_classes)
        restored = checkpoints.restore(template, partial=True)
        return restored["average"] if "average" in restored else restored["params"]["student"]


def check_student(c: ConfigDict, num_classes: int, source: str, mesh, *, any_classes: bool = False) -> None:
    """Raises what `load_student` would, but reads no array of a workdir."""
    if weight_files.is_weight_file(source):
        load_student(c, num_classes, source, mesh, any_classes=any_classes)
    else:
        with Checkpoints(os.path.join(source, "generator", "checkpoints")) as checkpoints:
            template = _student_template(c, num_classes, source, checkpoints, mesh, any_classes)
            checkpoints.check_fit(template, partial=True)


def _student_template(c: ConfigDict, num_classes: int, source: str, checkpoints: Checkpoints, mesh,
                      any_classes: bool) -> Any:
    described = runs.read_json(Path(source, "config.json"))
    source_classes = len(described["class_names"]) if described else num_classes
    _check_classes(source, source_classes, num_classes, any_classes)
    student = loop.abstract_state(build.generator_task(c, source_classes), mesh).params["student"]
    # The source's config, and not `c`, has decided whether there is an average.
    return {"average": student} if "average" in checkpoints.parts() else {"params": {"student": student}}


def _check_classes(source: str, found: int, expected: int, any_classes: bool) -> None:
    if found != expected and not any_classes:
        raise ValueError(f"{source} does not fit the config: it has {found} classes, and the data {expected}. Set "
                         "init_classes=new to start their embedding with new numbers, or give data of its classes")


def load_perceptual(c: ConfigDict) -> Any:
    """What stage 1 takes as frozen: the parameters of the perceptual network; None without one.

    Raises:
      FileNotFoundError: no such file. ValueError: it is damaged or another network's.
    """
    if build.tokenizer_task(c).frozen_shapes is None:
        return None
    try:
        return build.perceptual_network(c).load()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"perceptual is {c.perceptual!r}: {error}; or set perceptual=none") from error


def latest_step(directory: str) -> int | None:
    """The step of a stage's latest checkpoint, at the cost of a look at its directory; None if there is none."""
    with Checkpoints(os.path.join(directory, "checkpoints")) as checkpoints:
        return checkpoints.latest_step()
