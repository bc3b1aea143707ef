"""A selection in words, as a table, and drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from kernel.tuning.member_selection import Selection, best_member_set


def describe_selection(selection: Selection, budget: float) -> list[str]:
    """The lines of a table: a row per step. `budget`: seconds that there are for an image."""
    width = max(len(name) for name in selection.costs) + 2
    lines = [
        f"{selection.cell_type}, {selection.images} images",
        f"  {'member':<{width}} {'score':>7} {'gain':>8} {'s/image':>8} = features + heads",
    ]
    before = None
    for step in selection.steps:
        gain = "" if before is None else f"{step.score - before:+.4f}"
        fits = "fits" if step.seconds <= budget else "too slow"
        sign = " " if before is None else "+"
        lines.append(
            f"  {sign + ' ' + step.members[-1]:<{width}} {step.score:7.4f} {gain:>8} {step.seconds:8.2f} = "
            f"{step.features_seconds:.2f} + {step.heads_seconds:.2f}, {fits}"
        )
        before = step.score
    if len(selection.rounds) > len(selection.steps):
        best = best_member_set(selection.rounds[-1])
        lines.append(f"  no gain by another: at best {best.score:.4f} with {best.members[-1]}")
    return lines


def selections_to_csv(selections: Mapping[str, Selection], budget: float) -> str:
    """All sets that were tried as CSV text, a row each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["cell_type", "count", "members", "score", "seconds", "features_seconds", "heads_seconds", "fits", "chosen"]
    )
    for selection in selections.values():
        for each in selection.tried:
            times = (each.seconds, each.features_seconds, each.heads_seconds)
            writer.writerow(
                [
                    selection.cell_type,
                    len(each.members),
                    " ".join(each.members),
                    f"{each.score:.6f}",
                    *(f"{seconds:.3f}" for seconds in times),
                    int(each.seconds <= budget),
                    int(each in selection.steps),
                ]
            )
    return stream.getvalue()


def draw_selections(path: Path, selections: Mapping[str, Selection], budget: float) -> None:
    """Draw score against time into a PNG: all sets that were tried as points, the steps as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(selections), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, selection in enumerate(selections.values(), start=1):
        axes = figure.add_subplot(1, len(selections), place)
        tried = selection.tried
        axes.plot([c.seconds for c in tried], [c.score for c in tried], "o", color="#bbbbbb", label="tried")
        steps = selection.steps
        axes.plot([c.seconds for c in steps], [c.score for c in steps], "o-", color="#1f77b4", label="chosen")
        for number, step in enumerate(steps):
            name = step.members[-1] if number == 0 else f"+ {step.members[-1]}"
            axes.annotate(name, (step.seconds, step.score), xytext=(4, -11), textcoords="offset points", fontsize=8)
        if budget <= 2 * max(each.seconds for each in tried):  # else it would squeeze the rest
            axes.axvline(budget, color="#d62728", linestyle="--", label="budget")
        axes.set(title=f"{selection.cell_type}, {selection.images} images", xlabel="seconds per image", ylabel="score")
        axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)
