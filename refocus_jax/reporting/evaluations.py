"""The numbers of an evaluation.json by metric and scale, and as text."""

from collections.abc import Mapping


def text(title: str, evaluation: Mapping[str, float]) -> str:
    """Formats the numbers of one evaluation.json as text: one row per metric, one column per scale.

    Args:
      title: The title of the table.
      evaluation: Numbers by names such as `validation/cross_entropy/scale_2`, `.../all` or without a last part, and
        perhaps `step`.
    """
    columns, rows = by_scale(evaluation)
    width = max(map(len, rows))
    heading = f"{title}, step {evaluation['step']}" if "step" in evaluation else title
    lines = [f"{heading:{width}s}" + "".join(f"{column.replace('_', ' '):>10s}" for column in columns)]
    for metric, row in rows.items():
        cells = "".join(f"{row[c]:10.4g}" if c in row else " " * 10 for c in columns)
        lines.append(f"{metric:{width}s}{cells}".rstrip())
    return "\n".join(lines)


def by_scale(evaluation: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Arranges numbers by metric and scale; returns the columns `all`, `scale_1`, ... and the rows by metric."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in evaluation.items():
        if name == "step":
            continue
        name = name.removeprefix("validation/")
        metric, _, column = name.rpartition("/")
        if not column.startswith("scale_") and column != "all":
            metric, column = name, "all"
        rows.setdefault(metric, {})[column] = value
    scales = {column for row in rows.values() for column in row} - {"all"}
    return ["all", *sorted(scales, key=lambda column: int(column.split("_")[1]))], rows
