"""Arguments of a config, after a colon: `--config=d16:grids=k4,teacher=off`, or in short, `--config=d16:k4`.

`--config=d16:help` prints the arguments that a config accepts. Their order does not matter. At the end of this
file are changes that config files share: image sizes, VAR's family of depths, and its recipe.
"""

import sys
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from refocus_jax.config.ranges import nearest
from refocus_jax.focus import GRID_SIZES

IMAGENET_TRAIN_IMAGES = 1_281_167

# A function that changes a config in place. `Choices` maps each value of an argument to its change and a description.
Change = Callable[[ConfigDict], object]
Choices = Mapping[str, tuple[Change, str]]


def _nothing(c: ConfigDict) -> None:
    """Changes nothing: the value of an argument that stands for the default."""


def _grids(sizes: tuple[int, ...]) -> Change:
    return lambda c: c.update(grid_sizes=sizes)


# All arguments by name, each with its choices. They are applied in this order; later ones refine earlier ones.
ARGUMENTS: dict[str, Choices] = {
    "grids": {
        name: (_grids(sizes), f"token maps of sides {', '.join(map(str, sizes))}")
        for name, sizes in GRID_SIZES.items()},
    "pyramid": {
        "focus": (lambda c: c.tokenizer.model.update(pyramid="focus"), "focused views"),
        "var": (lambda c: c.tokenizer.model.update(pyramid="var", residual=True), "Table 2: VAR's pyramid"),
    },
    "scales": {
        "independent": (lambda c: c.tokenizer.model.update(residual=False), "every token map encodes its own view"),
        "residual": (lambda c: c.tokenizer.model.update(residual=True),
                     "residual quantization: sampling is exactly VAR's"),
    },
    "psf": {
        "disk": (lambda c: c.focus.update(psf="disk"), "the paper's blur"),
        "gaussian": (lambda c: c.focus.update(psf="gaussian"), "Table 2: a Gaussian with the disk's second moment"),
        "none": (lambda c: c.focus.update(psf="none"), "Table 2: no blur, so that the alias stream holds only noise"),
    },
    "teacher": {
        "on": (lambda c: c.generator.teacher.update(enabled=True), "a teacher that is distilled into the student"),
        "off": (lambda c: c.generator.teacher.update(enabled=False), "Table 2: the student alone"),
    },
    "alias": {
        "own": (lambda c: c.tokenizer.alias.update(shared=False), "a separate alias tokenizer"),
        "shared": (lambda c: c.tokenizer.alias.update(shared=True), "Table 2: one encoder and one codebook for both"),
    },
}
# Short names, and the arguments that they stand for.
WORDS: dict[str, tuple[str, ...]] = {
    "k4": ("grids=k4",), "residual": ("scales=residual",), "var": ("pyramid=var", "teacher=off"),
    "norefocus": ("psf=none",), "gaussian": ("psf=gaussian",), "noteacher": ("teacher=off",),
    "shared": ("alias=shared",), "mvar": ("architecture=mvar",), "var_recipe": ("recipe=var",), "smoke": ("run=smoke",),
}


def apply(c: ConfigDict, argument: str | None, **own: Choices) -> ConfigDict:
    """Applies comma-separated arguments to a config in place, and returns the config.

    Args:
      c: The config to change.
      argument: The arguments, for example "k4,teacher=off". "help" prints all of them and exits.
      **own: Further arguments that only this config has.

    Returns:
      `c`.

    Raises:
      ValueError: An argument is unknown to the config, or two of them contradict each other.
    """
    known = {**ARGUMENTS, **own}
    if argument == "help":
        print(describe(known))
        sys.exit(0)
    chosen: dict[str, str] = {}
    for given in filter(None, (argument or "").split(",")):
        for pair in WORDS.get(given, (given,)):
            name, _, value = pair.partition("=")
            if value not in known.get(name, {}):
                _refuse(given, known)
            if chosen.setdefault(name, value) != value:
                raise ValueError(f"config arguments {argument!r} give {name} as {chosen[name]} and as {value}; give "
                                 "one of them")
    for name, choices in known.items():
        if name in chosen:
            choices[chosen[name]][0](c)
    return c


def _refuse(given: str, known: Mapping[str, Choices]) -> None:
    pairs = [f"{name}={value}" for name, choices in known.items() for value in choices]
    words = [word for word, stands_for in WORDS.items() if all(pair in pairs for pair in stands_for)]
    raise ValueError(f"config argument {given!r} is unknown{nearest(given, pairs + words)}; choose from "
                     f"{', '.join(pairs + words)}, or help")


def describe(known: Mapping[str, Choices]) -> str:
    """Lists the arguments of a config, one per line, with their short names."""
    short = {pairs[0]: word for word, pairs in WORDS.items() if len(pairs) == 1}
    rows = [(f"{name}={value}", short.get(f"{name}={value}", ""), says)
            for name, choices in known.items() for value, (_, says) in choices.items()]
    rows.append((",".join(WORDS["var"]), "var", "Table 2: VAR itself"))
    return "\n".join(f"{pair:24}{word:14}{says}" for pair, word, says in rows)


def resolution(c: ConfigDict, image_size: int, grid_sizes: tuple[int, ...], rho_max: float) -> None:
    """Sets another image size, its grids, and the largest blur radius that suits their down-sampling factors."""
    c.update(image_size=image_size, grid_sizes=grid_sizes)
    c.focus.rho_max = rho_max


def depth(c: ConfigDict, layers: int) -> None:
    """Sets a size of VAR's family: width 64 per layer, one head per layer, stochastic depth in proportion."""
    c.generator.model.update(depth=layers, width=64 * layers, num_heads=layers, drop_path_rate=0.1 * layers / 24)


# The argument `architecture` of the sizes that M-VAR has.
STUDENTS: Choices = {
    "var": (_nothing, "VAR's transformer"),
    "mvar": (lambda c: c.generator.update(architecture="mvar"),
             "M-VAR's: attention within a scale, a Mamba-2 mixer from scale to scale"),
}


def recipes(epochs: int, batch_size: int) -> Choices:
    """Makes the argument `recipe`: the paper's stage 2, or VAR's batch size, learning rate and epochs on ImageNet."""
    def var(c: ConfigDict) -> None:
        c.generator.optimizer.learning_rate *= batch_size / 256
        c.generator.train.update(batch_size=batch_size, steps=epochs * IMAGENET_TRAIN_IMAGES // batch_size)

    return {"paper": (_nothing, "400,000 steps with a batch size of 256"),
            "var": (var, f"VAR's {epochs} epochs with a batch size of {batch_size}")}
