"""The rows of the study as data: what is trained, behind which tokenizer, and what it is compared with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The blocks whose comparisons were registered before any training. Block M came later.
REGISTERED = ("B", "C", "A", "A'")
# The number by which the rows of a block are compared; "distance" is the Fréchet distance of unguided samples to
# held-out images, by the judge that is in no loss. Behind one tokenizer, cross-entropies can be compared: the tokens of
# the last scale are the same for every blur, and all tokens are the same for every teacher.
MEASURES = {"B": "cross_entropy/last", "C": "cross_entropy/all", "A": "distance", "A'": "distance", "M": "distance"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A stage 1 that one or several rows stand behind.

    Attributes:
      arguments: The arguments of the config, such as "norefocus,noteacher".
      settings: Other settings, by name.
      lengthening: By which factor it trains longer than the base; the adversarial loss starts later in proportion.
    """

    arguments: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lengthening: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A stage 2.

    Attributes:
      block: The block of the study that it belongs to.
      question: What it answers, compared with the rows of `against`.
      tokenizer: The name of its tokenizer.
      arguments: The arguments of the config.
      settings: Other settings, by name.
      against: The rows that it is compared with, by the block's measure.
    """

    block: str
    question: str
    tokenizer: str
    arguments: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    against: tuple[str, ...] = ()


# VAR's four convolutions, where scales add up.
_PHI = {"tokenizer.model.num_phi": 4}

TOKENIZERS = {
    **{name: Tokenizer(arguments=name) for name in ("norefocus", "gaussian", "noteacher", "shared", "var")},
    "full": Tokenizer(),
    "norefocus_noteacher": Tokenizer(arguments="norefocus,noteacher"),
    # VAR's tokenizer encodes one image instead of all its views: by `plan`, 1.35 times the steps are as many FLOPs.
    "var_equal": Tokenizer(arguments="var", settings=_PHI, lengthening=1.35),
    "residual": Tokenizer(arguments="residual", settings=_PHI),
    "residual_noteacher": Tokenizer(arguments="residual,noteacher", settings=_PHI),
}


def _swaps(tokenizer: str) -> dict[str, Row]:
    """Other blurs behind one frozen tokenizer, without a teacher."""
    nyquist = {"focus.schedule": "nyquist"}
    found = {
        "disk": ("noteacher", {}, "Does blur help?", ("bilinear", "area")),
        "bilinear": ("norefocus,noteacher", {}, "Views that alias.", ()),
        "area": ("norefocus,noteacher", {"focus.downsample": "area"}, "Does averaging do as well as optics?",
                 ("bilinear",)),
        "gaussian": ("gaussian,noteacher", {}, "Does the shape of the blur matter?", ("disk",)),
        "gaussian_nyquist": ("gaussian,noteacher", nyquist, "Do the radii matter for a Gaussian?", ("gaussian",)),
        "disk_nyquist": ("noteacher", nyquist, "Do the radii matter for a disk?", ("disk",)),
    }
    return {f"{name}_behind_{tokenizer}": Row(
        block="B", question=question, tokenizer=tokenizer, arguments=arguments, settings=settings,
        against=tuple(f"{other}_behind_{tokenizer}" for other in against))
        for name, (arguments, settings, question, against) in found.items()}


# In the order in which they are trained. `full` is also the reference of block C, whose rows have its tokenizer.
ROWS = {
    **_swaps("full"),
    "full": Row(block="C", question="Does a teacher help at all?", tokenizer="full", against=("disk_behind_full",)),
    "placebo": Row(block="C", question="Is it the image's own aliases?", tokenizer="full",
                   settings={"generator.teacher.alias": "class"}, against=("full",)),
    "compute": Row(block="C", question="Is it the teacher's computation alone?", tokenizer="full",
                   settings={"generator.teacher.alias": "none"}, against=("full",)),
    **_swaps("norefocus"),
    "var": Row(block="A", question="Table 2: next-scale.", tokenizer="var", arguments="var", against=("full",)),
    "norefocus": Row(block="A", question="Table 2: without refocusing.", tokenizer="norefocus", arguments="norefocus",
                     against=("full",)),
    "gaussian": Row(block="A", question="Table 2: a Gaussian.", tokenizer="gaussian", arguments="gaussian",
                    against=("full",)),
    "noteacher": Row(block="A", question="Table 2: without teacher.", tokenizer="noteacher", arguments="noteacher",
                     against=("full",)),
    "norefocus_noteacher": Row(block="A'", question="Does blur help where there is no teacher?",
                               tokenizer="norefocus_noteacher", arguments="norefocus,noteacher",
                               against=("noteacher",)),
    "var_equal": Row(block="A'", question="Next-scale with as many FLOPs in stage 1, and VAR's phi.",
                     tokenizer="var_equal", arguments="var", settings=_PHI, against=("full",)),
    "residual": Row(block="A'", question="Does the teacher help where coarse tokens enter the picture?",
                    tokenizer="residual", arguments="residual", settings=_PHI, against=("residual_noteacher",)),
    "residual_noteacher": Row(block="A'", question="Next-focus against next-scale, all else equal.",
                              tokenizer="residual_noteacher", arguments="residual,noteacher", settings=_PHI,
                              against=("var_equal",)),
    "shared": Row(block="A", question="Table 2: one tokenizer for both streams.", tokenizer="shared",
                  arguments="shared", against=("full",)),
    "mvar": Row(block="M", question="Does refocusing help M-VAR too?", tokenizer="full", arguments="mvar",
                against=("mvar_var",)),
    "mvar_var": Row(block="M", question="M-VAR itself: next-scale, no teacher.", tokenizer="var",
                    arguments="mvar,var", against=("var",)),
}


def chosen(names: str) -> dict[str, Row]:
    """Returns the rows of comma-separated names of rows and blocks and those they are compared with, in their order.

    Raises:
      ValueError: There is no such row or block.
    """
    wanted = names.split(",")
    if unknown := sorted(set(wanted) - ROWS.keys() - MEASURES.keys()):
        raise ValueError(f"--rows has {', '.join(unknown)}; give blocks ({', '.join(MEASURES)}) or rows "
                         f"({', '.join(ROWS)})")
    asked = {name: row for name, row in ROWS.items() if name in wanted or row.block in wanted}
    others = {other for row in asked.values() for other in row.against}
    return {name: row for name, row in ROWS.items() if name in asked or name in others}
