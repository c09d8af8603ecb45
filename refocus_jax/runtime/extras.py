"""Optional packages: the extras of setup.py, which only some modes and data sources need."""

import importlib.util


def require(wanted_by: str, extra: str, packages: dict[str, str]) -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
      wanted_by: The beginning of the error, such as "--mode=report".
      extra: The extra of setup.py that installs them.
      packages: The packages by the names of their top-level modules.

    Raises:
      ImportError: Some are not installed.
    """
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"{wanted_by} needs {' and '.join(missing)}; run pip install 'refocus_jax[{extra}]'")
