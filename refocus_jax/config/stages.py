"""What the stages of a workdir were made with, and which settings may change when a stage resumes.

The checkpoints record it and are the authority. config.json is for people and for the modes that use a workdir later.
"""

import dataclasses
import json
import logging
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from refocus_jax.config.base import SETTINGS
from refocus_jax.data.records import Source
from refocus_jax.data.token_cache import Description
from refocus_jax.runtime.checkpoint import Checkpoints

# Settings that determine the parameters that a stage saves; they must stay the same.
_SHAPING = {
    "tokenizer": ("image_size", "grid_sizes", "focus", "tokenizer.model", "tokenizer.alias",
                  "generator.teacher.enabled", "class_names"),
    "generator": ("image_size", "grid_sizes", "focus", "tokenizer.model", "tokenizer.alias", "generator.architecture",
                  "generator.model", "generator.teacher", "generator.train.ema_decay", "class_names"),
}
# Settings of the above sections that change how something is computed but not the result; they may change.
HOW_NOT_WHAT = ("focus.implementation", "tokenizer.model.remat", "generator.model.remat", "generator.model.attention")
# Settings that determine which examples come next. The images themselves are compared by their fingerprint.
_ORDERING = ("seed", "data.resize_ratio", "data.flip")
# Settings that may change, with a warning. All others (steps, learning rates, ...) may change without one.
_SAID = {
    "tokenizer": ("data.source", "tokenizer.train.batch_size"),
    "generator": ("data.source", "generator.train.batch_size", "tokenizer.pretrained", "generator.init_from"),
}

# How an error message asks for recorded values that are not settings.
_NOT_SETTINGS = {
    "class_names": "the images of data.source as they were", "images": "the images of data.source as they were",
    "tokens": "data.tokens and data.token_examples as they were",
}


def made_with(c: ConfigDict, stage: str, source: Source, *, tokenizers: Mapping[str, str] | None = None,
              tokens: Description | None = None) -> dict[str, dict[str, Any]]:
    """Describes what a stage is made with, as JSON for its checkpoints.

    Args:
      c: The config.
      stage: "tokenizer" or "generator".
      source: The training images.
      tokenizers: Digests of the tokenizers that stage 2 is trained on.
      tokens: The token cache that stage 2 reads; None if it makes tokens on the fly.

    Returns:
      "shape", "order" and "said", each a dictionary by the names of settings, and "tokenizers". "shape" and
      "tokenizers" must stay the same, "order" must stay while the stage has not finished, and "said" may change.
    """
    shape = _values(c, _SHAPING[stage], class_names=list(source.class_names))
    order, said = _values(c, _ORDERING), _values(c, _SAID[stage])
    order["images"] = f"{len(source)} of fingerprint {source.fingerprint}"
    if tokens is not None:
        own_seed = "" if tokens.seed == c.seed else f" of seed {tokens.seed}"  # for a cache that was made elsewhere
        order["tokens"] = f"{tokens.examples} cached{own_seed}, {tokens.batch_size} at a time"
    elif stage == "generator":
        order["tokens"] = "made as it goes"
    return {"shape": shape, "order": order, "said": said, "tokenizers": dict(tokenizers or {})}


def token_description(c: ConfigDict, source: Source, tokenizers: Mapping[str, str],
                      examples: int | None = None) -> Description:
    """Describes the token cache of a config.

    Args:
      c: The config.
      source: The training images.
      tokenizers: Digests of the tokenizers that make the tokens.
      examples: The number of crops in the cache; default `encode.passes` times the number of images.

    Raises:
      ValueError: A vocabulary is too large for a cache.
    """
    examples = c.encode.passes * len(source) if examples is None else examples
    vocab_sizes, shaping = {"structure": c.tokenizer.model.vocab_size}, ["image_size", "focus", "tokenizer.model"]
    if c.generator.teacher.enabled:
        alias = c.tokenizer.model if c.tokenizer.alias.shared else c.tokenizer.alias
        vocab_sizes["alias"] = alias.vocab_size
        shaping.append("tokenizer.alias")
    settings = _values(c, (*shaping, "data.resize_ratio", "data.flip"))
    return Description(
        examples=examples, images=len(source), passes=-(-examples // len(source)), seed=c.seed,
        shard_size=c.encode.shard_size, batch_size=c.encode.batch_size, grid_sizes=tuple(c.grid_sizes),
        vocab_sizes=vocab_sizes, class_names=tuple(source.class_names), settings=settings, tokenizers=dict(tokenizers),
        fingerprint=source.fingerprint)


def _values(c: ConfigDict, names: Iterable[str], **others: Any) -> dict[str, Any]:
    """Returns the settings of these names or sections, as in JSON, without those in `HOW_NOT_WHAT`."""
    values = flatten_dict(json.loads(c.to_json()) | others, sep=".")
    return {name: value for name, value in values.items() if name not in HOW_NOT_WHAT
            and any(f"{name}.".startswith(f"{chosen}.") for chosen in names)}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a stage.

    Attributes:
      step: Its step.
      made_with: What it was made with, see `made_with`; None if it has no such record.
    """

    step: int
    made_with: dict[str, dict[str, Any]] | None


def trained(workdir: str | os.PathLike, stage: str, resume_step: int = -1) -> Trained | None:
    """Reads the record of the checkpoint that a stage in a workdir goes on from; None if there is none yet.

    Args:
      workdir: The directory of the run.
      stage: "tokenizer" or "generator".
      resume_step: See `Checkpoints.starting_step`.
    """
    with Checkpoints(os.path.join(workdir, stage, "checkpoints")) as checkpoints:
        step = checkpoints.starting_step(resume_step)
        return None if step is None else Trained(step, checkpoints.record(step).get("made_with"))


def check(workdir: str, stage: str, before: Trained, now: Mapping[str, Mapping[str, Any]], goes_on: bool) -> None:
    """Warns about settings that have changed since a stage was trained, if they may change.

    Args:
      workdir: The directory of the run.
      stage: "tokenizer" or "generator".
      before: The checkpoint that the stage goes on from.
      now: What the stage is made with now, see `made_with`.
      goes_on: Whether the stage will train further.

    Raises:
      ValueError: A setting has changed that must stay the same.
    """
    if before.made_with is None:
        return
    kinds = ("shape", "order") if goes_on else ("shape",)
    then, here = ({name: value for kind in kinds for name, value in made[kind].items()}
                  for made in (before.made_with, now))
    then = _younger_than_the_run(here) | then
    if changed := _changed(then, here):
        remedies = dict.fromkeys(_NOT_SETTINGS.get(name, f"{name}={then.get(name)}") for name in changed)
        raise ValueError(f"--workdir {workdir} holds another experiment, as its {stage} of step {before.step} says: "
                         f"{_in_words(changed, then, here)}. Give {', '.join(remedies)}, or another --workdir")
    then, here = before.made_with["order"] | before.made_with["said"], {**now["order"], **now["said"]}
    then = _younger_than_the_run(here) | then
    if changed := _changed(then, here):
        logging.warning("The %s in %s was trained with other settings, which may change: %s. %s", stage, workdir,
                        _in_words(changed, then, here), "It continues with the next examples." if goes_on else
                        "It is finished and stays as it is.")


def _younger_than_the_run(names: Iterable[str]) -> dict[str, Any]:
    """Returns the defaults of settings; a run that is older than a setting was made with its default."""
    return {name: json.loads(json.dumps(SETTINGS[name].default)) for name in names if name in SETTINGS}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def _in_words(names: list[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        return reprlib.repr(value) if isinstance(value, list) else repr(value)

    return "; ".join(f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}" for name in names)


def check_tokenizers_stay(workdir: str, tokenizer: Trained | None, steps: int) -> None:
    """Raises a ValueError if stage 1 would train further although a generator was trained on its tokenizers.

    Args:
      workdir: The directory of the run, which has a generator.
      tokenizer: The latest checkpoint of stage 1; None if there is none.
      steps: The step until which stage 1 would train.
    """
    if tokenizer is None:
        raise ValueError(f"--workdir {workdir} has a generator, but the tokenizers that it was trained on are not in "
                         f"{os.path.join(workdir, 'tokenizer')}; put them back, give the tokenizer.pretrained that "
                         "it was trained with, or give another --workdir")
    if tokenizer.step < steps:
        raise ValueError(f"tokenizer.train.steps is {steps}, and the generator in {workdir} was trained on the "
                         f"tokenizers of step {tokenizer.step}, which would change; give "
                         f"tokenizer.train.steps={tokenizer.step}, or train both in another --workdir")


def other_tokenizers(workdir: str | os.PathLike, tokenizers: Mapping[str, str]) -> list[str]:
    """Names the parts of tokenizers that differ from those that a workdir's generator was trained on.

    Args:
      workdir: The directory of the run.
      tokenizers: Digests of the tokenizers to compare.

    Returns:
      The names. Empty also if there is no generator, or none that recorded its tokenizers.
    """
    generator = trained(workdir, "generator")
    known = generator and generator.made_with and generator.made_with["tokenizers"]
    return _changed(known, tokenizers) if known else []


def check_tokenizers(workdir: str | os.PathLike, tokenizers: Mapping[str, str], pretrained: str) -> None:
    """Raises a ValueError if the generator of a workdir was trained on other tokenizers than these.

    Args:
      workdir: The directory of the run.
      tokenizers: Digests of the tokenizers that the generator is about to be used with.
      pretrained: Where these tokenizers come from; empty for the workdir itself.
    """
    if differing := other_tokenizers(workdir, tokenizers):
        place = f"tokenizer.pretrained={pretrained}" if pretrained else os.path.join(workdir, "tokenizer")
        raise ValueError(f"the generator in {workdir} was not trained on the tokenizers in {place}: "
                         f"{', '.join(differing)} differ. They may have been trained further since. Give the "
                         "tokenizer.pretrained that holds them as they were, or train a generator on these in "
                         "another --workdir")
