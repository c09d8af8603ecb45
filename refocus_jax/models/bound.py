"""A module together with its parameters, to pass both as one argument."""

import dataclasses
from typing import Any, Generic, TypeVar

import flax.linen as nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Bound(Generic[ModuleType]):
    """A Flax module and the parameters that it is applied with.

    Attributes:
      module: The module, unbound.
      params: Its parameter tree.
    """

    module: ModuleType
    params: Any

    def __call__(self, method: str | None, *args: Any) -> Any:
        """Applies the method of this name to the arguments; None means `__call__`."""
        return self.module.apply({"params": self.params}, *args, method=method)
