"""A module with its parameters, as one argument."""

import dataclasses
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Bound:
    """A Flax module and the parameters that it is applied with."""

    module: nn.Module
    params: Any

    def __call__(self, method: str | None, *args: Any) -> Any:
        """Applies a method by its name; None is `__call__`."""
        return self.module.apply({"params": self.params}, *args, method=method)
