"""The figures as a picture; matplotlib is needed here alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .runner import Result
from .workload import OURS

COLOURS = {OURS: "#1f6f54", "faststream": "#b5651d"}


def draw(results: Sequence[Result], file: Path) -> None:
    """A panel a workload: the median of each side as a bar, each round as a point."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    make: Any = plt.subplots
    figure, axes = make(1, len(results), figsize=(3.2 * len(results), 3.6), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        metric = result.workload.metric
        for x, (side, samples) in enumerate(result.samples.items()):
            figures = sorted(sample[metric] for sample in samples)
            axis.bar(x, figures[len(figures) // 2], color=COLOURS.get(side, "#8a8f98"), width=0.7)
            axis.plot([x] * len(figures), figures, ".", color="black", alpha=0.5, markersize=4)
        axis.set_xticks(range(len(result.samples)), list(result.samples), fontsize=8)
        axis.set_title(f"{result.workload.name}\n{metric}, {result.workload.unit}", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(axis="y", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)
