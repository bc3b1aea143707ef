"""The record of a run: its settings, a log of JSON lines, curves as PNG, and TensorBoard's where that is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kernel.errors import RunError
from kernel.files import writing, written_file
from kernel.log import LOG
from kernel.runtime.memory import peak_host_memory
from kernel.scoring.scores import ImageResult, describe_scores, scores_of
from kernel.training.run import TrainingRun

#: Steps between two lines of the log.
LOG_EVERY = 20


class RunRecord:
    """Writes beside the weights `<out>`: `<out>.json` (settings), `.jsonl` (log), `.png` (curves).

    A resumed run goes on in the same log; lines of steps that are done again are dropped from it.

    Raises:
        RunError: a file cannot be written; so do all methods that write.
    """

    def __init__(self, run: TrainingRun, step: int, is_evaluated: bool = True):
        self.path = run.out.with_suffix(".jsonl")
        self.title = f"{run.spec.kind} {run.spec.encoder}"
        settings = {**run.told(), "torch": torch.__version__}
        write_record(run.out.with_suffix(".json"), json.dumps(settings, indent=2) + "\n")
        last_score = step if is_evaluated else step - 1  # of an evaluation that is done again, no line stays
        before = read_log(self.path) if step else []
        kept = [line for line in before if line["step"] <= (last_score if "score" in line else step)]
        write_record(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.board = open_board(run.out.with_suffix(""))

    def add_step(
        self, step: int, loss: float, terms: Mapping[str, float], learning_rate: float, crops_per_second: float
    ) -> None:
        """Log the first step, and each LOG_EVERY-th."""
        if step % LOG_EVERY and step != 1:
            return
        self._add(
            {
                "step": step,
                "loss": loss,
                **terms,
                "learning_rate": learning_rate,
                "crops_per_second": round(crops_per_second, 2),
                "peak_memory_gb": peak_host_memory(),
            }
        )

    def add_evaluation(self, step: int, results: Sequence[ImageResult]) -> float:
        """Log an evaluation and draw the curves anew; returns the overall score."""
        scores = scores_of(results)
        LOG.info("%s", describe_scores(f"step {step}", results))
        self._add({"step": step, "score": scores.overall, **{f"score_{k}": v for k, v in scores.per_type.items()}})
        self.draw()
        return scores.overall

    def _add(self, line: dict[str, Any]) -> None:
        with writing(self.path, RunError), self.path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in line.items():
                if name != "step":
                    self.board.add_scalar(name, value, line["step"])

    def draw(self) -> None:
        """Write the curves so far."""
        draw_curves(read_log(self.path), self.path.with_suffix(".png"), self.title)

    def close(self) -> None:
        """Write the last curves."""
        self.draw()
        if self.board is not None:
            self.board.close()


def write_record(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_file(path, RunError) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def open_board(folder: Path) -> Any:
    """A TensorBoard writer into `folder`, None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; those that are damaged, or broken off at the end, are left out. Nothing for no file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw loss terms and, where there are evaluations, scores over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "score" in line]
    figure = Figure(figsize=(9, 4 if not scores else 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if scores else 1, 1, squeeze=False)[:, 0]
    terms = sorted({name for line in losses for name in line if name.startswith("loss")})
    for name in terms:
        axes[0].plot([line["step"] for line in losses], [line.get(name) for line in losses], label=name)
    axes[0].set(title=f"{title}: losses, before weighting", xlabel="step", yscale="log")
    if scores:
        for name in sorted({name for line in scores for name in line if name.startswith("score")}):
            axes[1].plot([line["step"] for line in scores], [line.get(name) for line in scores], marker="o", label=name)
        axes[1].set(title="the metric on validation images", xlabel="step", ylim=(0, None))
    for axis in axes:
        if axis.get_lines():
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    with written_file(path, RunError) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
