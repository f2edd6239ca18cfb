"""Rank while the digits network trains, with and without BatchNorm and skip connections: monitor, watch and compare.

    python examples/training/run.py [--out DIR] [--small]

Writes monitor.png, watch.png, compare.png, training.csv (the monitors' histories) and training.json (accuracies and
alarms). About half a minute of one idle CPU core; --small: eight steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import rankscope as rs
from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style
from rankscope.demo.digits_network import Block, DigitsNetwork, digits_split

BATCH, RATE = 32, 0.3
REMEDIES = {  # skip connections, BatchNorm
    "skip and BatchNorm": (True, True),
    "BatchNorm alone": (False, True),
    "skip alone": (True, False),
    "neither": (False, False),
}


WATCHED = ("skip and BatchNorm", "skip alone")


class Nothing(nn.Module):
    """A shortcut that adds zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(())


def network(*, skip: bool, norm: bool) -> DigitsNetwork:
    """The digits network from PyTorch's own initialisation, without what is not wanted."""
    torch.manual_seed(0)
    made = DigitsNetwork()
    for block in [module for module in made.modules() if isinstance(module, Block)]:
        if not skip:
            block.shortcut = Nothing()
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            if not norm and isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return made


def train(model: DigitsNetwork, steps: int, kept: Path, alarm: rs.CollapseAlarm) -> tuple[pd.DataFrame, float]:
    """Plain SGD with a monitor beside it; its history, and the accuracy on digits held out."""
    split = digits_split()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    probe = split.held_out_images[:150]
    with rs.RankMonitor(model, every=4, metrics=["effective_rank"], inputs=probe, alarms=alarm) as monitor:
        for step in range(steps):
            if step % 12 == 0:
                torch.save(model.state_dict(), kept / f"step_{step}.pt")
            batch = torch.randint(len(split.train_images), (BATCH,), generator=generator)
            loss = nn.functional.cross_entropy(model.train()(split.train_images[batch]), split.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            monitor.step()
    with torch.no_grad():
        right = model.eval()(split.held_out_images).argmax(1) == split.held_out_labels
    return monitor.history, float(right.float().mean())


def draw_monitor(histories: dict[str, pd.DataFrame], fell: dict[str, list[rs.monitor.Collapse]], path: Path) -> None:
    """Effective rank of the pooled features over the steps, with a mark where an alarm rang."""

    def draw(ax: Axes) -> None:
        for (name, history), colour in zip(histories.items(), COLOURS, strict=False):
            pooled = history[history["layer"] == "flatten"]
            ax.plot(pooled["step"], pooled["value"], color=colour, label=name)
            for alarm in fell[name]:
                ax.plot(alarm.step, alarm.value, marker="v", color=colour, markersize=8)
        ax.set_xlabel("step")
        ax.set_ylabel("effective rank of the pooled features")
        ax.set_ylim(bottom=0)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    save(path, 2.8, 1, lambda panels: draw(panels[0]))


def save(path: Path, height: float, panels: int, draw: Callable[[list[Axes]], None]) -> None:
    """A figure of the width of a page."""
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(list(figure.subplots(1, panels, squeeze=False)[0]))
        figure.savefig(path, dpi=180)


def draw_watch(runs: dict[str, rs.WatchedRun], path: Path) -> None:
    """Two runs as heat maps of layer by checkpoint."""

    def draw(panels: list[Axes]) -> None:
        for ax, (name, run) in zip(panels, runs.items(), strict=True):
            run.plot("effective_rank", ax=ax)
            ax.set_title(name, loc="left")

    save(path, 2.6, len(runs), draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-training"))
    parser.add_argument("--small", action="store_true", help="eight steps")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = 8 if arguments.small else 61
    images = digits_split().held_out_images[:150]
    histories, watched, accuracies = {}, {}, {}
    fell: dict[str, list[rs.monitor.Collapse]] = {name: [] for name in REMEDIES}
    for name, (skip, norm) in REMEDIES.items():
        alarm = rs.CollapseAlarm("effective_rank", below=5.0, action=fell[name].append, layer="flatten")
        model = network(skip=skip, norm=norm)
        with tempfile.TemporaryDirectory() as kept:
            histories[name], accuracies[name] = train(model, steps, Path(kept), alarm)
            if name in WATCHED:
                fresh = network(skip=skip, norm=norm).eval()
                watched[name] = rs.watch(kept, fresh, images, metrics=["effective_rank"], progress=False)
        print(f"\n{name}: accuracy on held-out digits {accuracies[name]:.1%}", *fell[name], sep="\n")
    found = rs.compare(histories, metric="effective_rank")
    print(f"\n{found}")
    draw_monitor(histories, fell, arguments.out / "monitor.png")
    pair = {name: watched[name] for name in WATCHED}
    draw_watch(pair, arguments.out / "watch.png")
    save(arguments.out / "compare.png", 2.8, 1, lambda panels: found.plot(ax=panels[0]))
    table = pd.concat([history.assign(run=name) for name, history in histories.items()])
    table.to_csv(arguments.out / "training.csv", index=False)
    record = {"accuracy": accuracies, "alarms": {name: [str(one) for one in rung] for name, rung in fell.items()}}
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote monitor.png, watch.png, compare.png, training.csv and training.json in {arguments.out}")


if __name__ == "__main__":
    main()
