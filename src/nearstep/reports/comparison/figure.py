"""The figure of several runs, a small one for each metric: as PNG, SVG or PDF by matplotlib, as HTML by bokeh."""

import math
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from nearstep.common.errors import ConfigError, TrainingError
from nearstep.reports.comparison.curves import ComparedRuns
from nearstep.reports.comparison.show import group_rows, shown
from nearstep.reports.metrics import meaning
from nearstep.reports.page.render import bokeh_script, policy

COLUMNS = 4  # as on TRL's page
WIDTH, HEIGHT = 3.2, 2.4  # inches of a small figure
# Okabe and Ito's colours, which those who see few colours tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def write_figure(comparison: ComparedRuns, path: Path) -> None:
    """Write the figure in the format that the file's name ends with.

    Raises ConfigError where the library that draws it is not installed, TrainingError where it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[path.suffix.lower()](comparison, unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}. Give another --output.") from error


def _drawn(comparison: ComparedRuns, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"a figure as {path.suffix} needs matplotlib, which is not installed: pip install 'nearstep[report]'"
        ) from error
    columns = min(COLUMNS, len(comparison.metrics))
    rows = math.ceil(len(comparison.metrics) / columns)
    figure = Figure(
        figsize=(max(WIDTH * columns, 5), HEIGHT * rows + 0.3 * len(comparison.groups) + 0.3), layout="constrained"
    )
    for place, metric in enumerate(comparison.metrics, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, linewidth=0.5)
        if place > len(comparison.metrics) - columns:
            axes.set_xlabel(comparison.axis, fontsize=8)
        for number, group in enumerate(comparison.groups):
            colour, spread = colour_of(number), comparison.spread(metric, number)
            if spread is not None:
                axes.plot(spread.x, spread.mean, color=colour, linewidth=1.4, label=group.label, gid=f"group-{number}")
            if spread is not None and spread.runs > 1:
                low, high = spread.mean - spread.deviation, spread.mean + spread.deviation
                axes.fill_between(spread.x, low, high, color=colour, alpha=0.2, linewidth=0)
                for curve in comparison.curves[metric][number]:
                    axes.plot(curve.x, curve.y, color=colour, linewidth=0.5, alpha=0.4)
    lines = [figure.axes[0].plot([], [], color=colour_of(number))[0] for number in range(len(comparison.groups))]
    figure.legend(lines, [group.label for group in comparison.groups], loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=150)


def _page(comparison: ComparedRuns, path: Path) -> None:
    script = bokeh_script()
    from bokeh.embed import components

    drawing, boxes = components(tuple(_small(comparison, metric) for metric in comparison.metrics), wrap_script=False)
    drawing = drawing.replace("</", "<\\/")  # in its texts alone: no name of a run ends the element
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files(__package__) / "page.html.jinja").read_text(encoding="utf-8"))
    text = template.render(
        policy=policy((script, drawing), live=False),
        bokeh=script,
        drawing=drawing,
        groups=[(colour_of(number), *row) for number, row in enumerate(group_rows(comparison))],
        labels=[group.label for group in comparison.groups],
        settings={
            name: [" / ".join(map(str, of_group)) for of_group in values]
            for name, values in comparison.settings.items()
        },
        charts=[(metric, meaning(metric), box) for metric, box in zip(comparison.metrics, boxes, strict=True)],
        numbers=[
            (metric, group.label, shown(comparison.last(metric, number)), shown(comparison.best(metric, number)),
             len(comparison.curves[metric][number]))
            for metric in comparison.metrics
            for number, group in enumerate(comparison.groups)
        ],
    )  # fmt: skip
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _small(comparison: ComparedRuns, metric: str) -> Any:
    """One metric as a figure of bokeh."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    drawn = figure(height=230, sizing_mode="stretch_width", toolbar_location="above", x_axis_label=comparison.axis,
                   tools="pan,wheel_zoom,box_zoom,reset", title=None)  # fmt: skip
    drawn.toolbar.autohide = True
    lines: list[Any] = []
    for number, group in enumerate(comparison.groups):
        spread, colour = comparison.spread(metric, number), colour_of(number)
        if spread is None:
            continue
        data: Mapping[str, Any] = {
            "x": spread.x, "y": spread.mean, "low": spread.mean - spread.deviation,
            "high": spread.mean + spread.deviation, "group": [group.label] * len(spread.x),
        }  # fmt: skip
        source = ColumnDataSource(data=dict(data))
        if spread.runs > 1:
            drawn.varea(x="x", y1="low", y2="high", source=source, fill_color=colour, fill_alpha=0.2)
            for curve in comparison.curves[metric][number]:
                drawn.line(curve.x, curve.y, color=colour, line_width=0.7, line_alpha=0.4)
        lines.append(drawn.line("x", "y", source=source, color=colour, line_width=2))
        if len(spread.x) == 1:
            lines.append(drawn.scatter("x", "y", source=source, color=colour))
    tips = [("", "@group"), (comparison.axis, "@x{0,0}"), (metric, "@y{0.0000}")]
    drawn.add_tools(HoverTool(renderers=lines, tooltips=tips, mode="vline", line_policy="nearest"))
    return drawn


def colour_of(group: int) -> str:
    """The colour of a group, the same in every figure."""
    return COLOURS[group % len(COLOURS)]


FORMATS: Mapping[str, Callable[[ComparedRuns, Path], None]] = {
    ".html": _page, ".png": _drawn, ".svg": _drawn, ".pdf": _drawn,
}  # fmt: skip
