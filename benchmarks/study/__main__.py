"""The command: see `benchmarks.study`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

import benchmarks.study
from benchmarks.study import information, measure, plan, recipes, report, rows, runs, shift, tables


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.study", description=benchmarks.study.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    given = {name: commands.add_parser(name) for name in ("run", "plan", "measure", "table", "report", "shift",
                                                         "information")}
    for command in given.values():
        command.add_argument("--directory", type=Path, required=True)
    for name in ("run", "plan"):
        given[name].add_argument("--data", default="photos", help="a data source, such as npz:PATH")
        given[name].add_argument("--base", default="tiny", help="a config: a name or a path")
        given[name].add_argument("--rows", default=",".join(rows.MEASURES), help="blocks or names, separated by commas")
    for name in ("run", "shift", "information"):
        given[name].add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    given["run"].add_argument("--processes", type=int, default=1, help="at a time, each on a core of its own")
    given["run"].add_argument("--features", default="efficientnet_lite0,efficientnet_lite1",
                              help="networks that judge samples; the last one judges the comparisons")
    given["run"].add_argument("--guidance", default="0,1.5", help="of the samples; the first one is compared")
    given["plan"].add_argument("--topology", required=True, help="a machine, such as gpu:a100:1x8")
    given["measure"].add_argument("--row", choices=rows.ROWS, required=True)
    given["measure"].add_argument("--seed", type=int, required=True)
    for name in ("table", "report", "shift", "information"):
        given[name].add_argument("--clusters", choices=tables.CLUSTERS, default="image",
                                 help="what the bootstrap draws: held-out images, or classes if each is a photograph")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given, further = _parser().parse_known_args(arguments)
    settings = dict(map(recipes.parse_setting, further))
    if given.command != "measure":
        jax.config.update("jax_platforms", "cpu")  # accelerators are for the processes that this one starts
    if given.command in ("run", "plan"):
        study = recipes.Study(
            directory=given.directory, base=given.base, data=given.data, settings=settings,
            features=getattr(given, "features", "").split(","),
            guidance=[float(number) for number in getattr(given, "guidance", "0").split(",")])
        chosen = rows.chosen(given.rows)
        if given.command == "run":
            study.write()
            runs.run(study, chosen, given.seeds, given.processes)
        else:
            plan.plan(study, chosen, given.topology)
        return
    if settings:
        raise ValueError(f"{given.command} takes no settings, but {', '.join(settings)} are given; leave them out")
    if given.command == "measure":
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/refocus_jax").expanduser()))
        measure.measure(recipes.read(given.directory), given.row, given.seed)
    elif given.command in ("shift", "information"):
        of_tokens = {"shift": shift, "information": information}[given.command]
        found = of_tokens.tables(recipes.read(given.directory), given.seeds, given.clusters)
        print("\n\n".join(map(tables.markdown, found)))
    elif given.command == "table":
        print("\n\n".join(map(tables.markdown, tables.tables(given.directory, given.clusters))))
    else:
        print(report.write(given.directory, given.clusters))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, RuntimeError, ImportError) as error:
        sys.exit(str(error))
