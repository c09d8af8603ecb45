import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from refocus_jax.evaluation import tables
from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.reporting import charts

CHART = Chart("loss of both", "step", "nats", [
    Line("ours", [1, 2, 4], [3.0, 2.0, 1.5], low=[2.9, 1.8, 1.4], high=[3.1, 2.2, 1.6]),
    Line("theirs", [1, 2, 4], [3.5, 2.5, 2.0], dashed=True)], log_x=True)


def test_json_holds_a_chart():
    assert tables.chart_from_json(json.loads(json.dumps(tables.to_json(CHART)))) == CHART


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="2 columns and a row of 1"):
        Table("sizes", ["name", "size"], [["one"]])


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter()
            if element.tag.endswith(("}text", "}title"))]


def test_an_svg_is_wellformed_text_in_the_pages_own_colour_and_always_the_same():
    text = charts.svg(CHART)
    assert {"loss of both", "step", "nats", "ours", "theirs"} <= set(texts(text))
    assert "currentColor" in text and "#010203" not in text and "#ffffff" not in text
    assert charts.svg(CHART) == text
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("width") is None and root.get("viewBox")


def test_ids_of_a_page_are_unique_and_what_is_referred_to_is_there():
    ids = []
    for name in ("first", "second"):
        text = charts.svg(CHART, name)
        found = re.findall(r' id="([^"]+)"', text)
        assert found and all(one.startswith(f"{name}-") for one in found)
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) == set(found)
        ids += found
    assert len(set(ids)) == len(ids)


def test_words_of_others_are_shown_as_they_are():
    name = 'a $x_1$ <b> & "c" \\alpha $'
    chart = Chart(name, name, name, [Line(name, [1, 2], [1, 2])])
    assert texts(charts.svg(chart)).count(name) == 4
    assert charts.png(chart)


def test_gaps_and_long_lines():
    """NaN leaves a gap; thousands of points become few, and no extreme is lost."""
    plain = charts.svg(Chart("t", "x", "y", [Line("", [1, 2, 3, 4], [1.0, 2.0, 3.0, 2.0])]))
    for gap in (None, "nan", float("inf")):
        text = charts.svg(Chart("t", "x", "y", [Line("", [1, 2, 3, 4], [1.0, gap, 3.0, 2.0])]))
        assert "nan" not in text.lower().replace("mono", "") and text != plain
    x, y, low, high = charts._points(Line("", range(10_000), [float(i == 5000) for i in range(10_000)]))
    assert len(x) == len(y) == len(low) == len(high) == 150 and high.max() == 1 and low.max() == 0
    np.testing.assert_allclose([x.mean(), y.mean()], [4999.5, 1e-4], rtol=0.02)
    assert len(charts.svg(Chart("t", "x", "y", [Line("", range(10_000), np.sin(np.arange(10_000)))]))) < 30_000


def test_lines_that_belong_together_share_a_colour_and_a_logarithm_needs_something_positive():
    lines = [Line("a", [1, 2], [1, 2]), Line("", [1, 2], [2, 3], color=0, dashed=True), Line("b", [1, 2], [3, 4])]
    text = charts.svg(Chart("t", "x", "y", lines))
    assert charts.COLORS[0] in text and charts.COLORS[1] not in text and charts.COLORS[2] in text
    assert charts.svg(Chart("t", "x", "y", [Line("a", [0, 1], [0, -1])], log_x=True, log_y=True))


def test_a_png_shows_each_line_in_its_colour():
    def shown(chart):
        with Image.open(io.BytesIO(charts.png(chart))) as picture:
            pixels = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        colors = {bytes(pixel.tolist()).hex() for pixel in pixels}
        return [color[1:] in colors for color in charts.COLORS[:2]]

    assert shown(CHART) == [True, True]
    assert shown(dataclasses.replace(CHART, lines=CHART.lines[1:])) == [True, False]


def test_a_table_as_text_is_in_columns():
    table = Table("sizes", ["name", "size"], [["one", 1.5], ["seven", None]], "not shown")
    assert tables.text(table) == "sizes\nname   size\none     1.5\nseven     -"
