"""What a monitor costs: training steps with ``RankMonitor``, without it, and with hooks that are written by hand.

    python benchmarks/monitor.py --device cuda                 # ResNet-18 at 224×224, batch 128, 9 cut points
    python benchmarks/monitor.py --device cpu --threads 2      # the digits network, batch 64

One run trains the same network in turns: ``every`` steps without a monitor, ``every`` steps with one, ``every`` steps
with hooks by hand, and again, so that a machine whose speed drifts treats all alike. Each turn holds one monitored
step. A round's overhead is the time of its monitored turn over that of its plain turn; the median of all rounds is
given, with the quartiles. The monitored step alone is timed too: it decides the overhead at any other ``every``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rankscope as rs
from rankscope._base.provenance import device_name, versions

Turn = Callable[[], float]
Work = Callable[[], None]


def resnet18(device: torch.device, batch: int) -> tuple[nn.Module, list[str], torch.Tensor, torch.Tensor]:
    """The network, its cut points (stem, eight blocks), one batch of images and labels."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18").to(device).train()
    names = ["maxpool", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))]
    images = torch.randn(batch, 3, 224, 224, device=device)
    return net, names, images, torch.randint(0, 1000, (batch,), device=device)


def digits(device: torch.device, batch: int) -> tuple[nn.Module, list[str], torch.Tensor, torch.Tensor]:
    """The network of the demo, untrained, with its nine blocks."""
    from rankscope.demo.digits_network import digits_network, digits_split

    net = digits_network("random").to(device).train()
    names = ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "flatten", "fc"]
    split = digits_split()
    return net, names, split.train_images[:batch].to(device), split.train_labels[:batch].to(device)


class ByHand:
    """What a competent user writes: pooled features through hooks, centred, ``svdvals``, RankMe and effective rank."""

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        self.modules = {name: net.get_submodule(name) for name in names}
        self.found: dict[str, torch.Tensor] = {}
        self.handles: list[Any] = []
        self.values: list[dict[str, tuple[float, float]]] = []

    def attach(self) -> None:
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: self._keep(name, out)))

    def _keep(self, name: str, out: torch.Tensor) -> None:
        rows = out.detach()
        self.found[name] = rows.mean((2, 3)) if rows.ndim == 4 else rows

    def read(self) -> None:
        values = {}
        for name, rows in self.found.items():
            ranks = []
            for x in (rows, rows - rows.mean(0)):
                s = torch.linalg.svdvals(x)
                p = s / s.sum() + 1e-7
                ranks.append(float(torch.exp(-(p * p.log()).sum())))
            values[name] = (ranks[0], ranks[1])
        self.values.append(values)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.found.clear()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Training:
    """One network and its optimiser, and turns of ``every`` steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.every, self.amp = args.every, args.amp
        make = resnet18 if self.device.type == "cuda" or args.network == "resnet18" else digits
        self.net, self.names, self.images, self.labels = make(self.device, args.batch)
        self.optimiser = torch.optim.SGD(self.net.parameters(), 1e-3, momentum=0.9)
        self.first_seconds: dict[str, list[float]] = {"plain": [], "monitor": [], "by hand": []}

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            loss = nn.functional.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimiser.step()

    def turn(self, kind: str, before: Work, after: Work, rest: Work | None = None) -> float:
        """Seconds of ``every`` steps: ``before`` and ``after`` stand around the first, ``rest`` after every other."""
        wait(self.device)
        start = time.perf_counter()
        before()
        self.step()
        after()
        wait(self.device)
        first = time.perf_counter()
        self.first_seconds[kind].append(first - start)
        for _ in range(self.every - 1):
            self.step()
            if rest is not None:
                rest()
        wait(self.device)
        return time.perf_counter() - start


def nothing() -> None:
    """Stands around the first step of a plain turn."""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of three turns each, the order of the turns shifted from round to round."""
    training = Training(args)
    hand = ByHand(training.net, training.names)

    def monitored() -> float:
        with rs.RankMonitor(training.net, training.names, every=args.every) as monitor:
            seconds = training.turn("monitor", nothing, monitor.step, rest=monitor.step)
        if monitor.events or monitor.history["value"].isna().any():
            raise SystemExit(f"the monitor could not measure: {monitor.events}")
        if set(monitor.history["layer"]) != set(training.names):
            raise SystemExit("the monitor left out layers")
        return seconds

    turns: dict[str, Turn] = {
        "plain": lambda: training.turn("plain", nothing, nothing),
        "monitor": monitored,
        "by hand": lambda: training.turn("by hand", hand.attach, hand.read),
    }
    order = list(turns)
    seconds: dict[str, list[float]] = {kind: [] for kind in order}
    for turn in turns.values():  # kernels, memory and the optimiser's state
        turn()
    for found in training.first_seconds.values():
        found.clear()
    for round_ in range(args.rounds):
        for i in range(len(order)):
            kind = order[(i + round_) % len(order)]
            seconds[kind].append(turns[kind]())
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "device": device_name(training.device),
        "versions": versions(),
        "network": type(training.net).__name__,
        "batch": args.batch,
        "every": args.every,
        "rounds": args.rounds,
        "cut_points": len(training.names),
        "amp": args.amp,
        "seconds": seconds,
        "first_step_seconds": training.first_seconds,
    }


def table(found: dict[str, Any]) -> str:
    """Seconds a step, overhead in per cent (median, quartiles), and the monitored step."""
    plain = np.array(found["seconds"]["plain"])
    lines = ["| | ms a step | overhead | quartiles | first step of a turn, ms |", "|---|---|---|---|---|"]
    for kind, seconds in found["seconds"].items():
        times = np.array(seconds)
        over = 100 * (times / plain - 1)
        low, middle, high = np.percentile(over, [25, 50, 75])
        first = 1e3 * float(np.median(found["first_step_seconds"][kind]))
        share = ("–", "–") if kind == "plain" else (f"{middle:.2f}%", f"{low:.2f} … {high:.2f}%")
        lines.append(
            f"| {kind} | {1e3 * np.median(times) / found['every']:.2f} | {share[0]} | {share[1]} | {first:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--network", choices=["resnet18", "digits"], help="default: resnet18 on a GPU, digits on a CPU")
    parser.add_argument("--batch", type=int, help="default: 128 on a GPU, 64 on a CPU")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch on the processor")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16")
    parser.add_argument("--out", type=Path, help="folder for monitor-<device>.json and .md")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.batch = args.batch or (128 if torch.device(args.device).type == "cuda" else 64)
    found = measure(args)
    text = table(found)
    about = (
        f"{found['network']}, batch {found['batch']}, {found['cut_points']} cut points, every {found['every']} steps"
    )
    print(f"{about}; {found['device']}; {found['versions']}\n\n{text}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"monitor-{torch.device(args.device).type}"
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.out / f"{name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
