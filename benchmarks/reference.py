"""Checks whether a run is healthy: compares it with the curves of reference runs that differ only in their seeds.

    python -m benchmarks.reference compare --workdir runs/tiny
    python -m benchmarks.reference make --workdirs runs/tiny_0 runs/tiny_1 runs/tiny_2 --machine "two shared cores" \\
        --out tiny.json

`compare` says in plain words which curves leave the range of the reference, from which step on, and what to check, and
shows the last evaluation next to the reference's. It exits with 0 if no curve leaves the range, with 1 if one does, and
with 2 if the run cannot be compared, for example because its settings differ. It can be used while the run trains.
refocus_jax/reporting/health.py explains how the range is computed.
"""

import argparse
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

from refocus_jax.evaluation import tables
from refocus_jax.reporting import health, runs
from refocus_jax.runtime.files import read_json

REFERENCE = health.locate("tiny")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def make(workdirs: list[Path], machine: str, out: Path) -> None:
    about = {"machine": machine, "packages": {name: version(name) for name in PACKAGES}}
    reference = health.make([runs.read(workdir) for workdir in workdirs], about)
    text = json.dumps(health.to_json(reference), indent=1, allow_nan=False)
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)  # a curve on a line
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"{out}: seeds {', '.join(map(str, reference.about['seeds']))}, "
          + ", ".join(f"{len(curves)} curves of {stage}" for stage, curves in reference.curves.items()))


def compare(workdir: Path, reference: Path) -> bool:
    content = read_json(reference, health.REFERENCE_FIELDS)
    if content is None:
        raise FileNotFoundError(f"--reference {reference} does not exist; give the path of a file that `make` wrote")
    expected, run = health.from_json(content), runs.read(workdir)
    verdict = health.compare(expected, run)
    print(verdict, tables.text(health.final_table(expected, run)), sep="\n\n")
    return verdict.healthy


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--workdirs", type=Path, nargs="+", required=True)
    making.add_argument("--machine", required=True, help="the machine on which they ran, in words")
    making.add_argument("--out", type=Path, default=REFERENCE)
    comparing = commands.add_parser("compare")
    comparing.add_argument("--workdir", type=Path, required=True)
    comparing.add_argument("--reference", type=Path, default=REFERENCE)
    given = vars(parser.parse_args(arguments))
    try:
        if given.pop("command") == "make":
            make(**given)
            return 0
        return 0 if compare(**given) else 1
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
