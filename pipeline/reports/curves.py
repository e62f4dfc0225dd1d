"""Plot precision over recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.reports.pictures import class_color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_LEGEND_ROWS = 20


def pr_curves(
    recall: np.ndarray, precision: Mapping[str, np.ndarray], title: str = "IoU 0.50"
) -> Figure:
    """Return a figure with one curve per class, and their mean as a thick line.

    ``recall`` is (R,), the precision of each class (R,), negative where undefined. The legend gives
    the average precision of each class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, which keeps its figures in memory and needs the main thread.
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = {name: curve for name, curve in precision.items() if (np.asarray(curve) >= 0).all()}
    for number, (name, curve) in enumerate(precision.items()):
        if name in known:
            color = [0.8 * channel / 255 for channel in class_color(number)]
            label = f"{name} {np.mean(curve):.3f}" if number < _MAX_LEGEND_ROWS else None
            axes.plot(recall, curve, color=color, linewidth=1.5, label=label)
    if len(known) > 1:
        mean = np.mean(list(known.values()), axis=0)
        axes.plot(recall, mean, color="black", linewidth=2.5, label=f"mean {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    if known:
        axes.legend(title="average precision", fontsize="small", loc="lower left")
    return figure
