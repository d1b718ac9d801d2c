"""A map -> a PNG, drawn by matplotlib without a browser or a display.

Where in the flow: `write_map` with `picture`. Only this module imports matplotlib.
"""

import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from nomicbert.bulk.map.colours import HUES, REST, SHAPES, STOPS, Colours, Group, Groups, Scale
from nomicbert.bulk.map.labels import Label
from nomicbert.bulk.projection import SEED, Floats

INCHES, DPI = (11.0, 7.5), 150
MARKERS = dict(zip(SHAPES, ("o", "s", "^", "P"), strict=True))


def draw(
    file: BinaryIO,
    places: Floats,
    colours: Colours,
    labels: Sequence[Label],
    *,
    title: str,
    summary: str,
) -> None:
    """Write a PNG of 1650 x 1125 pixels; the arguments are those of `page`."""
    from matplotlib import patheffects
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", "datalim")
    axes.margins(0.03)
    size = float(np.clip(60 / np.sqrt(len(places)), 1.7, 4.5)) ** 2 * 2
    look = {"s": size, "alpha": 0.85, "edgecolors": (0, 0, 0, 0.4), "linewidths": 0.2}
    if isinstance(colours, Groups):
        texts = _groups(axes, places, colours, look)
    else:
        texts = _scale(figure, axes, places, colours, look)
    halo: list[Any] = [patheffects.withStroke(linewidth=3, foreground="white")]
    names = [
        axes.text(one.x, one.y, one.text, ha="center", va="center", weight="bold", size=9)
        for one in labels
    ]
    for name in names:
        name.set_path_effects(halo)
    for one in [*texts, *names, figure.suptitle(f"{title}\n{summary}", size=10)]:
        one.set_parse_math(False)  # "$" is a character like others
    with warnings.catch_warnings():
        # characters that no font here has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        _hide_covered(figure, names)
        figure.savefig(file, format="png")


def _groups(axes: Any, places: Floats, colours: Groups, look: dict[str, Any]) -> list[Any]:
    # in a mixed order, so that no group covers the others
    order = np.random.default_rng(SEED).permutation(len(places))
    styles = [_style(index, group) for index, group in enumerate(colours.groups)]
    for marker in dict.fromkeys(marker for _, marker in styles):
        here = [i for i in order if styles[colours.codes[i]][1] == marker]
        hues = [styles[colours.codes[i]][0] for i in here]
        axes.scatter(*places[here].T, c=hues, marker=marker, **look)
    for (hue, marker), group in zip(styles, colours.groups, strict=True):
        label = f"{group.name}  {group.count:,}"
        axes.scatter([], [], c=hue, marker=marker, label=label, **{**look, "s": 30})
    legend = axes.legend(
        title=colours.title, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False
    )
    return [*legend.get_texts(), legend.get_title()]


def _style(index: int, group: Group) -> tuple[str, str]:
    """Hue and marker of a group."""
    if group.rest:
        return REST, MARKERS[SHAPES[0]]
    return HUES[index % len(HUES)], MARKERS[SHAPES[index // len(HUES) % len(SHAPES)]]


def _hide_covered(figure: Any, texts: Sequence[Any]) -> None:
    """Hide each label that would cover one before it."""
    figure.draw_without_rendering()
    taken: list[Any] = []
    for one in texts:
        box = one.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            one.set_visible(False)
        else:
            taken.append(box)


def _scale(
    figure: Any, axes: Any, places: Floats, colours: Scale, look: dict[str, Any]
) -> list[Any]:
    from matplotlib.colors import LinearSegmentedColormap

    known = ~np.isnan(colours.values)
    axes.scatter(*places[~known].T, c=REST, **look)
    scale = LinearSegmentedColormap.from_list("map", STOPS)
    drawn = axes.scatter(
        *places[known].T, c=colours.values[known], cmap=scale, vmin=0, vmax=1, **look
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.5, ticks=[0, 1])
    bar.ax.set_yticklabels(colours.ends)
    return [bar.ax.set_title(colours.title, size=9), *bar.ax.get_yticklabels()]
