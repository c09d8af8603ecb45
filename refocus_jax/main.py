"""Flags and modes, nothing else: python -m refocus_jax.main --config=tiny --workdir=runs/tiny"""

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from refocus_jax.config import arguments, check
from refocus_jax.config.base import SETTINGS
from refocus_jax.config.ranges import nearest
from refocus_jax.runtime import processes
from refocus_jax.runtime.lease import Lease
from refocus_jax.runtime.preemption import EXIT_CODE, Preempted

# Each mode is a function of a module in `modes`, which is imported when it is asked for, and a line for --help.
MODES = {
    "train": ("train.run", "both stages, then samples"),
    "tokenizer": ("train.run_tokenizer", "stage 1"),
    "generator": ("train.run_generator", "stage 2"),
    "encode": ("encode.run", "training images to tokens, see --config.encode"),
    "sample": ("sample.run", "images of a trained generator, see --config.sample; --config.sampling.cfg is its "
                             "guidance: "
               "0 is none, and where others count 1 as none it is a ramp from 1 to 1 + cfg over the scales"),
    "edit": ("edit.run", "paint the hidden part of an image, see --config.edit"),
    "aliasing": ("aliasing.run", "what aliases in views, tokenizer and samples, see --config.aliasing"),
    "evaluate": ("evaluate.run", "FID and other numbers, see --config.evaluate"),
    "report": ("report.run", "a page of one run or of several, see --config.report"),
    "plan": ("plan.run", "what a machine that is not here would need, see --config.plan"),
    "export": ("export.run", "files for PyTorch's VAR code, or one file that draws, see --config.export"),
    "config": ("config.run", "every setting as it stands, with its line"),
}
# They replace one file each, or none, and may be asked while a training goes on.
READING = ("report", "plan", "config")

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A shipped config by name, as tiny or d16, or the "
                                                                "path of "
                                          "a config file; with arguments after a colon, as d16:grids=k4,teacher=off "
                                          "(d16:help lists them). Single settings: --config.data.source=photos")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; a run that stopped goes on from it.")
_MODE = flags.DEFINE_enum("mode", "train", sorted(MODES),
                          "; ".join(f"{name}: {line}" for name, (_, line) in MODES.items()))
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes train "
                                   "together; under Slurm and on TPU pods they find each other without these flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, with --coordinator.")


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags and loads the config. What is wrong with them ends the program with a line that says it."""
    argv = _with_paths(argv)
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value and _CONFIG.value.keys()  # raises what loading it has raised
        return rest
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        sys.exit(f"{explain(argv, error)}\nSee --help for the flags, and --mode=config for the settings.")


def _with_paths(argv: Sequence[str]) -> list[str]:
    """The arguments with the names of shipped configs turned into paths, after `--config=` and after `--config`."""
    found = [re.sub(r"^(--?config=)(.*)$", lambda match: match[1] + arguments.locate(match[2]), given, flags=re.DOTALL)
             for given in argv]
    for i, given in enumerate(found[:-1]):
        if given in ("--config", "-config"):
            found[i + 1] = arguments.locate(found[i + 1])
    return found


def explain(argv: Sequence[str], error: Exception) -> str:
    """What an error that reading the flags has raised means, in words."""
    given = dict(re.findall(r"^--?(config[\w.]*)(?:=(.*))?$", "\n".join(argv), re.MULTILINE))
    path = Path(given.pop("config", "").partition(":")[0])
    if path.name and not path.exists():
        known = [*arguments.shipped(), *map(str, path.parent.glob("*.py"))]
        return (f"--config is {path}, which is not there{nearest(str(path), known)}; give one of "
                f"{', '.join(arguments.shipped())}, or the path of a config file")
    if isinstance(error, flags.Error):
        if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
            name, value = match.groups()
            if name in SETTINGS:
                return f"{name} is {value}; give {SETTINGS[name].range.says}"
        # What a config says of its own arguments comes with a traceback.
        *_, last = str(error).strip().splitlines()
        return last.removeprefix("ValueError: ") if last.startswith("ValueError: ") else str(error)
    for flag in given:
        name = flag.removeprefix("config.")
        if name not in SETTINGS:
            return f"--{flag} is not a setting{nearest(name, SETTINGS)}; correct it or leave it out"
    return str(error)


def written(mode: str, config: ConfigDict, workdir: str) -> list[str]:
    """The directories that a mode writes into, which nobody else may write into meanwhile."""
    if mode in READING:
        return []
    if mode == "sample":
        return [config.sample.output or workdir]
    return [workdir, *filter(None, [config.encode.output if mode == "encode" else ""])]


def find(mode: str):
    """The function of a mode, (config, workdir) to None; its module is imported now."""
    module, name = MODES[mode][0].split(".")
    return getattr(importlib.import_module(f"refocus_jax.modes.{module}"), name)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    mode, workdir = _MODE.value, check.check_workdir(_WORKDIR.value)
    config = _CONFIG.value.copy_and_resolve_references()
    check.check_ranges(config)
    check.expand_paths(config)
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR chooses another
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/refocus_jax"))
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with contextlib.ExitStack() as leases:
        for directory in dict.fromkeys(map(os.path.realpath, written(mode, config, workdir))):
            leases.enter_context(Lease(directory, mode))
        try:
            find(mode)(config, workdir)
        except Preempted as error:
            logging.warning("%s", error)
            sys.exit(EXIT_CODE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
