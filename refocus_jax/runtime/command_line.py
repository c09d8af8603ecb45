"""Commands that do something else with the workdir of the command that is running."""

import re
import shlex
from collections.abc import Sequence

# Flags that another command gets anew, or does not need because it runs in one process.
_REPLACED = r"--?(workdir|mode|coordinator|num_processes|process_id)(=.*)?"


def settings(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of `python -m refocus_jax.main` that say what a run is: its config and its settings."""
    given, kept = iter(arguments), []
    for flag in given:
        if not re.fullmatch(_REPLACED, flag, re.DOTALL):
            kept.append(flag)
        elif "=" not in flag:
            next(given, None)  # its value
    return kept


def command(kept: Sequence[str], workdir: str, mode: str) -> str:
    """Returns the command, quoted for a shell, that runs a mode in a workdir with these settings."""
    return shlex.join(["python", "-m", "refocus_jax.main", *kept, f"--workdir={workdir}", f"--mode={mode}"])
