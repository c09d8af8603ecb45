"""What every row of a study costs on a machine that need not be present."""

import functools
from collections.abc import Mapping

from benchmarks.study.recipes import Recipe, Study
from benchmarks.study.rows import Row
from benchmarks.study.tables import markdown
from refocus_jax.config import build, check
from refocus_jax.evaluation import tables
from refocus_jax.evaluation.tables import Table
from refocus_jax.planning import targets
from refocus_jax.planning.planner import VAR_UTILIZATION, Planner
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.files import write_json


def plan(study: Study, rows: Mapping[str, Row], topology: str) -> None:
    """Prints steps, FLOPs and days of one seed of every tokenizer and row, and writes them to DIRECTORY/plan.json."""
    target = targets.load(topology)
    recipes = {f"tokenizer {name}": ("tokenizer", study.tokenizer(name, 0))
               for name in dict.fromkeys(row.tokenizer for row in rows.values())}
    recipes |= {name: ("generator", study.generator(row, 0)) for name, row in rows.items()}
    cells, total = [], 0.0
    for name, (stage, recipe) in recipes.items():
        steps, flops = cost(stage, recipe, target.platform)
        days = steps * flops / (len(target.devices) * target.chip.peak_flops * VAR_UTILIZATION) / 86400
        total += days
        cells.append([name, stage, str(steps), f"{flops / 1e12:.4g}", f"{days:.3g}"])
    cells.append(["all, one seed", None, None, None, f"{total:.3g}"])
    table = Table(f"{study.base} on {topology}", ["row", "stage", "steps", "TFLOP per step", "days"], cells,
                  f"Days at {VAR_UTILIZATION:.1%} of the peak, which VAR's authors reached. Evaluations, samples and "
                  "whatever the machine waits for are not included.")
    write_json(study.directory / "plan.json", tables.to_json(table))
    print(markdown(table))


def cost(stage: str, recipe: Recipe, platform: str) -> tuple[int, float]:
    """Returns the steps of a stage and the FLOPs of each, over all devices."""
    c, mesh = recipe.load(), mesh_lib.make_mesh()
    check.check(c, mesh.size)
    planner = Planner(make=functools.partial(build.programs, c, platform), target=None, mesh=mesh)
    with targets.cudnn_taken_for_granted():
        return c[stage].train.steps, planner.flops(stage)
