"""How pictures look, and how they come to a file; matplotlib is loaded where one is drawn, and not before."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from maml_jax.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN, OTHER, THIRD, GREY = "#1b5e9b", "#d1602d", "#5a8f3d", "#8a8a8a"
"""Colours that differ for colour-blind eyes, too."""
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


@contextlib.contextmanager
def figure(path: Path, width: float = 6.4, height: float = 3.8, dpi: int = 130) -> Iterator["Figure"]:
    """An empty figure to draw on, written to a PNG file at the end, whole or not at all.

    Args:
      path: of the file.
      width: in inches.
      height: in inches.
      dpi: pixels per inch.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")  # of no window, and of no other's pyplot
        yield drawn
        write_whole(path, lambda file: drawn.savefig(file, format="png", dpi=dpi))
