"""The numbers of an evaluation.json by metric and scale, as text, and in words."""

from collections.abc import Iterator, Mapping


def in_words(tokenizer: Mapping[str, float], generator: Mapping[str, float]) -> Iterator[str]:
    """Says what the last evaluations of both stages mean; a stage without numbers is left out."""
    if "validation/thumbnail_psnr" in tokenizer:
        psnr, thumbnail = tokenizer["validation/psnr"], tokenizer["validation/thumbnail_psnr"]
        compared = f"{abs(psnr - thumbnail):.1f} dB {'better' if psnr > thumbnail else 'worse'} than"
        yield (f"Reconstructions of held-out images have {psnr:.1f} dB, {compared} thumbnails with a pixel per "
               f"token{'' if psnr > thumbnail else ': the tokenizer has learned too little'}.")
    if "validation/below_unigram_cross_entropy" in generator:
        below = generator["validation/below_unigram_cross_entropy"]
        compared = f"{abs(below):.0%} {'fewer' if below > 0 else 'more'} than"
        yield (f"The generator needs {generator['validation/bits_per_image']:.0f} bits for a held-out image, "
               f"{compared} a model that knows only how frequent each token is"
               f"{'' if below > 0 else ': it has learned too little'}.")


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
