"""The command line: `python -m refocus_jax.main --config=tiny --workdir=runs/tiny`. Only flags and the modes."""

if __name__ == "__main__":
    from refocus_jax.runtime import huge_pages

    huge_pages.restart()  # before anything is imported that takes time

import contextlib
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from refocus_jax.config import catalog, check
from refocus_jax.config.base import SETTINGS
from refocus_jax.config.ranges import nearest
from refocus_jax.runtime import bucket, command_line, memory, mesh, processes
from refocus_jax.runtime.bucket_lease import BucketLease
from refocus_jax.runtime.lease import Lease, LeaseError
from refocus_jax.runtime.preemption import EXIT_CODE, Preempted
from refocus_jax.training.loop import NonFinite

# Each mode has a function, whose module in `modes` is imported only if the mode is used, and a line for --help.
MODES = {
    "train": ("train.run", "train both stages"),
    "tokenizer": ("train.run_tokenizer", "train stage 1"),
    "generator": ("train.run_generator", "train stage 2"),
    "convert": ("convert.run", "pack the images of Parquet files, tar files or a folder to train on, see "
                "--config.convert"),
    "encode": ("encode.run", "encode the training images as tokens on disk, see --config.encode"),
    "sample": ("sample.run", "draw images with a trained generator, see --config.sample; --config.sampling.cfg is the "
               "guidance: 0 is none, and in the convention where 1 is none it is a ramp from 1 to 1 + cfg over the "
               "scales"),
    "edit": ("edit.run", "paint the masked part of an image, see --config.edit"),
    "demo": ("demo.run", "serve a page for a browser on this machine, to draw, edit and look at images, see "
             "--config.demo"),
    "aliasing": ("aliasing.run", "measure aliasing in views, tokenizer and samples, see --config.aliasing"),
    "evaluate": ("evaluate.run", "measure FID and other numbers, see --config.evaluate"),
    "report": ("report.run", "write an HTML page about one or several runs, see --config.report"),
    "plan": ("plan.run", "estimate memory and time on a machine that need not be present, see --config.plan"),
    "export": ("export.run", "write files for PyTorch's VAR code, one file that draws images, or a folder to hand "
               "over, see --config.export"),
    "config": ("config.run", "print every setting with its value and what it does"),
}
# These modes replace one file each, or none, and may run while a training is running.
READING = ("report", "plan", "config", "demo")
# Flags of --mode=demo, unless they are given: it then shows the small model that comes with the package.
DEMO = {"config": "small", "workdir": "small"}
SHARED = ("train", "tokenizer", "generator", "convert", "encode")  # by several processes with a workdir in a bucket
# What can be done with a workdir after training.
NEXT = {"sample": "To draw more samples:", "report": "For a page with curves and pictures:"}

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The name of a shipped config, such as tiny or d16, or the path of a config file; arguments "
                          "follow after a colon, as in d16:grids=k4,teacher=off (d16:help lists them). Single "
                          "settings: --config.data.source=photos")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; a run that was stopped resumes from it.")
_MODE = flags.DEFINE_enum("mode", "train", sorted(MODES),
                          "; ".join(f"{name}: {line}" for name, (_, line) in MODES.items()))
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if several processes train "
                                   "together; under Slurm and on TPU pods they find each other without these flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0, with --coordinator.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Shows with an error where in the program it comes from.")


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags and loads the config; an error in them ends the program with a line that explains it."""
    argv = _with_paths(_with_defaults(argv))
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value and _CONFIG.value.keys()  # raises the error that loading the config has raised, if any
        return rest
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        sys.exit(f"{explain(argv, error)}\nSee --help for the flags, and --mode=config for the settings.")


def _with_defaults(argv: Sequence[str]) -> list[str]:
    """Adds the flags of `DEMO` that are not given, if the mode is `demo`."""
    given = "\n".join(argv)
    if not re.search(r"^--?mode[=\n]demo$", given, re.MULTILINE):
        return [*argv]
    missing = [f"--{name}={value}" for name, value in DEMO.items()
               if not re.search(rf"^--?{name}(=|$)", given, re.MULTILINE)]
    return [argv[0], *missing, *argv[1:]]  # in front, because settings are only known after the config


def _with_paths(argv: Sequence[str]) -> list[str]:
    """Replaces the names of shipped configs by the paths of their files, after `--config=` and after `--config`."""
    found = [re.sub(r"^(--?config=)(.*)$", lambda match: match[1] + catalog.locate(match[2]), given, flags=re.DOTALL)
             for given in argv]
    for i, given in enumerate(found[:-1]):
        if given in ("--config", "-config"):
            found[i + 1] = catalog.locate(found[i + 1])
    return found


def explain(argv: Sequence[str], error: Exception) -> str:
    """Explains an error that reading the flags has raised."""
    given = dict(re.findall(r"^--?(config[\w.]*)(?:=(.*))?$", "\n".join(argv), re.MULTILINE))
    path = Path(given.pop("config", "").partition(":")[0])
    if path.name and not path.exists():
        known = [*catalog.shipped(), *map(str, path.parent.glob("*.py"))]
        return (f"--config is {path}, which is not there{nearest(str(path), known)}; give one of "
                f"{', '.join(catalog.shipped())}, or the path of a config file")
    if isinstance(error, flags.Error):
        if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
            name, value = match.groups()
            if name in SETTINGS:
                return f"{name} is {value}; give {SETTINGS[name].range.says}"
        # An error of a config about its own arguments comes with a traceback, of which only the last line matters.
        *_, last = str(error).strip().splitlines()
        return last.removeprefix("ValueError: ") if last.startswith("ValueError: ") else str(error)
    for flag in given:
        name = flag.removeprefix("config.")
        if name not in SETTINGS:
            return f"--{flag} is not a setting{nearest(name, SETTINGS)}; correct it or leave it out"
    return str(error)


def written(mode: str, config: ConfigDict, workdir: str) -> list[str]:
    """Returns the directories that a mode writes into; no other process may write into them at the same time."""
    if mode in READING:
        return []
    if mode in ("sample", "convert"):
        return [config[mode].output or workdir]
    return [workdir, *filter(None, [config.encode.output if mode == "encode" else ""])]


def _resolved(directory: str) -> str:
    return directory if bucket.is_url(directory) else os.path.realpath(directory)


def find(mode: str):
    """Imports the module of a mode and returns the mode's function, (config, workdir) -> None."""
    module, name = MODES[mode][0].split(".")
    return getattr(importlib.import_module(f"refocus_jax.modes.{module}"), name)


def main(argv):
    """Runs the mode that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    mode, workdir = _MODE.value, _WORKDIR.value
    in_bucket = bucket.is_url(workdir)
    if in_bucket:
        bucket.check_url("--workdir", workdir)
    else:
        workdir = check.check_workdir(workdir)
    config = _CONFIG.value.copy_and_resolve_references()
    check.check_ranges(config)
    check.expand_paths(config)
    if not jax.config.jax_compilation_cache_dir:  # the variable JAX_COMPILATION_CACHE_DIR sets another
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/refocus_jax"))
    mesh.start_enough_threads()
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if in_bucket and jax.process_count() > 1 and mode not in SHARED:
        raise ValueError(f"--workdir is {workdir}, and there are {jax.process_count()} processes, which share no files "
                         f"there; in a bucket, several processes can only convert, encode and train, and --mode={mode} "
                         "runs in one")
    with contextlib.ExitStack() as context:
        directories = dict.fromkeys(map(_resolved, written(mode, config, workdir)))
        for directory in directories:
            context.enter_context(BucketLease(directory, mode) if bucket.is_url(directory) else Lease(directory, mode))
        local = bucket.stage(workdir, only_reads=workdir not in directories) if in_bucket else workdir
        context.callback(bucket.publish, local)
        try:
            find(mode)(config, local)
        except Preempted as error:
            logging.warning("%s", error)
            sys.exit(EXIT_CODE)
    if in_bucket and workdir in directories and jax.process_index() == 0:
        print(f"All files are in {workdir} too.")
    if mode == "train" and jax.process_index() == 0:
        kept = command_line.settings(sys.argv[1:])
        print(*(f"{says} {command_line.command(kept, workdir, following)}" for following, says in NEXT.items()),
              sep="\n")


def is_for_users(error: Exception) -> bool:
    """Whether this package itself has raised an error, about settings, files, data or a training that diverges."""
    frames = traceback.extract_tb(error.__traceback__)
    return (isinstance(error, (ValueError, OSError, ImportError, NonFinite, LeaseError))
            and Path(frames[-1].filename).is_relative_to(Path(__file__).parent))


def run(argv):
    """Calls `main`. An error for users ends the program with its message, without a traceback."""
    try:
        main(argv)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if _TRACEBACK.value or not is_for_users(error):
            raise
        sys.exit(f"{error}\n--traceback shows where this error comes from.")


if __name__ == "__main__":
    memory.collect_less_often()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(run, flags_parser=parse)
