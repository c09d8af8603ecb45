import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from refocus_jax.evaluation import charts
from refocus_jax.evaluation.charts import Chart, Line, Table

CHART = Chart("loss of both", "step", "nats", [
    Line("ours", [1, 2, 4], [3.0, 2.0, 1.5], low=[2.9, 1.8, 1.4], high=[3.1, 2.2, 1.6]),
    Line("theirs", [1, 2, 4], [3.5, 2.5, 2.0], dashed=True)], log_x=True)


def test_json_holds_a_chart():
    assert charts.chart_from_json(json.loads(json.dumps(charts.to_json(CHART)))) == CHART


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="2 columns and a row of 1"):
        Table("sizes", ["name", "size"], [["one"]])


def test_an_svg_is_wellformed_text_in_the_pages_own_colour_and_always_the_same():
    text = charts.svg(CHART)
    root = ElementTree.fromstring(text)
    words = " ".join(filter(None, (element.text for element in root.iter() if element.tag.endswith("}text"))))
    assert all(word in words for word in ("loss of both", "step", "nats", "ours", "theirs"))
    assert "currentColor" in text and "#010203" not in text and "#ffffff" not in text
    assert charts.svg(CHART) == text


def test_a_png_shows_each_line_in_its_colour():
    def shown(chart):
        with Image.open(io.BytesIO(charts.png(chart))) as picture:
            pixels = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        colors = {bytes(pixel.tolist()).hex() for pixel in pixels}
        return [color[1:] in colors for color in charts.COLORS[:2]]

    assert shown(CHART) == [True, True]
    assert shown(dataclasses.replace(CHART, lines=CHART.lines[1:])) == [True, False]
