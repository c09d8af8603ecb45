"""Flags and modes, nothing else: python -m refocus_jax.main --config=configs/tiny.py --workdir=runs/tiny"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from refocus_jax import aliasing, evaluate, experiment, generate, plan, report, validate
from refocus_jax.runtime import processes
from refocus_jax.runtime.lease import Lease
from refocus_jax.runtime.preemption import EXIT_CODE, Preempted

MODES = {
    "train": experiment.train,
    "tokenizer": lambda config, workdir: experiment.train_tokenizer(experiment.prepare(config, workdir)),
    "generator": lambda config, workdir: experiment.train_generator(experiment.prepare(config, workdir)),
    "encode": experiment.encode_data,
    "sample": generate.sample,
    "edit": generate.edit,
    "aliasing": aliasing.measure,
    "evaluate": lambda config, workdir: evaluate.evaluate(
        config, workdir, _SAMPLES.value and validate.expand_path(_SAMPLES.value)),
    "report": report.write,
    "plan": lambda config, workdir: plan.plan(config, workdir, _TOPOLOGY.value),
}

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, e.g. configs/tiny.py or "
                                          "configs/d16.py:k4,noteacher; single settings: --config.data.source=photos")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; a run that stopped goes on from it.")
_MODE = flags.DEFINE_enum(
    "mode", "train", sorted(MODES), "train: both stages, then samples; tokenizer: stage 1; encode: training images to "
    "tokens, see --config.encode; generator: stage 2; sample: images of a trained generator, see --config.draw; "
    "--config.sampling.cfg is its guidance: 0 is none, and where others count 1 as none it is a ramp from 1 to 1 + cfg "
    "over the scales; edit: paint part of an image anew, see --config.edit; aliasing: what aliases in views, tokenizer "
    "and samples, see --config.aliasing; evaluate: FID and other numbers, see --config.evaluation; report: a page of "
    "one run or of several, see --config.report; plan: what a machine that is not here would need, see --topology.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "What --mode=plan plans for: tpu:v5e:4x4, tpu:v5p:4x4x4, "
                                "gpu:a100:1x8 (hosts x GPUs of each), ...")
_SAMPLES = flags.DEFINE_string("samples", None, "What --mode=evaluate measures instead of samples of the workdir's "
                               "generator: a folder of images or an .npz file, as --config.evaluation.samples.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes train "
                                   "together; under Slurm and on TPU pods they find each other without these flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, with --coordinator.")


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags and loads the config. What is wrong with them ends the program with a line that says it."""
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value and _CONFIG.value.keys()  # raises what loading it has raised
        return rest
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        sys.exit(f"{explain(argv, error)}\nSee --help for the flags, and configs/common.py for the settings.")


def explain(argv: Sequence[str], error: Exception) -> str:
    """What an error that reading the flags has raised means, in words."""
    given = dict(re.findall(r"^--?(config[\w.]*)(?:=(.*))?$", "\n".join(argv), re.MULTILINE))
    path = Path(given.pop("config", "").partition(":")[0])
    if path.name and not path.exists():
        near = validate.nearest(str(path), map(str, path.parent.glob("*.py")))
        return f"--config is {path}, which is not there{near}; give the path of a config file"
    if isinstance(error, flags.Error):
        if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
            name, value = match.groups()
            if name in validate.RANGES:
                return f"{name} is {value}; give {validate.RANGES[name].says}"
        # What a config says of its own arguments comes with a traceback.
        *_, last = str(error).strip().splitlines()
        return last.removeprefix("ValueError: ") if last.startswith("ValueError: ") else str(error)
    for flag in given:
        name = flag.removeprefix("config.")
        if name not in validate.RANGES:
            return f"--{flag} is not a setting{validate.nearest(name, validate.RANGES)}; correct it or leave it out"
    return str(error)


def written(mode: str, config: ConfigDict, workdir: str) -> list[str]:
    """The directories that a mode writes into, which nobody else may write into meanwhile.

    A report and a plan replace one file each, and are written while a training goes on.
    """
    if mode in ("report", "plan"):
        return []
    if mode == "sample":
        return [config.draw.output or workdir]
    return [workdir, *filter(None, [config.encode.output if mode == "encode" else ""])]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    mode, workdir = _MODE.value, validate.check_workdir(_WORKDIR.value)
    config = _CONFIG.value.copy_and_resolve_references()
    validate.check_ranges(config)
    validate.expand_paths(config)
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR chooses another
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/refocus_jax"))
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with contextlib.ExitStack() as leases:
        for directory in dict.fromkeys(map(os.path.realpath, written(mode, config, workdir))):
            leases.enter_context(Lease(directory, mode))
        try:
            MODES[mode](config, workdir)
        except Preempted as error:
            logging.warning("%s", error)
            sys.exit(EXIT_CODE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
