"""Speed of the independence deficit at full size: every class at one η, beside a loop of scikit-learn's Lasso.

    python benchmarks/deficit.py [--device cuda] [--threads 2] [--sample 20] [--table]

Seeded synthetic logits of a classifier (variance about 5, accuracy about 0.77): features of 2,048 dimensions with a
decaying spectrum around class means, classes in groups of twenty, a tenth of them nearly combinations of four others.
The scikit-learn loop is timed on every (classes / sample)-th class and extrapolated, in two forms:

- ``loop``: Lasso(precompute=gram).fit(logits, logit), the samples handed over as the library asks;
- ``loop, reduced``: the samples replaced by a triangular c × c factor with the same Gram matrix, which scikit-learn
  does not do by itself. This is its coordinate descent and little else, the strictest comparison.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
import warnings

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from rankscope._base.provenance import device_name, versions
from rankscope.deficit import independence_deficit
from rankscope.deficit.lasso import eta_max, solve_lasso
from rankscope.deficit.moments import moments
from rankscope.deficit.operators import SharedGram


def planted(samples: int, classes: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (samples, classes) float32 and labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    groups = torch.randn(-(-classes // 20), width, generator=g)
    head = torch.randn(classes, width, generator=g) + 0.7 * groups[torch.arange(classes) // 20]
    few = classes // 10
    for i in range(few):
        others = few + torch.randperm(classes - few, generator=g)[:4]
        head[i] = torch.randn(4, generator=g) @ head[others] + 0.3 * head[i]
    head /= head.norm(dim=1, keepdim=True)
    spectrum = torch.arange(1, width + 1) ** -0.5
    spectrum *= math.sqrt(width) / spectrum.norm()
    logits = torch.empty(samples, classes)
    for rows in torch.arange(samples).split(8192):
        features = torch.randn(len(rows), width, generator=g) * spectrum * 2.2 + 9 * head[labels[rows]]
        logits[rows] = features @ head.T
    return logits, labels


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loop(x: np.ndarray, gram: np.ndarray, eta: np.ndarray, chosen: range) -> tuple[float, float, dict[int, np.ndarray]]:
    """Mean seconds a class, worst relative duality gap left, and the coefficients; centred x, gram = xᵀx."""
    seconds, worst, found = 0.0, 0.0, {}
    for i in chosen:
        others = np.arange(len(gram)) != i
        part, own, design = np.ascontiguousarray(gram[np.ix_(others, others)]), x[:, i], np.asfortranarray(x[:, others])
        model = Lasso(alpha=eta[i] / 2, fit_intercept=False, precompute=part, tol=1e-6, max_iter=100_000, copy_X=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            start = time.perf_counter()
            model.fit(design, own)
            seconds += time.perf_counter() - start
        n, w = len(x), model.coef_
        residual = own - design @ w
        slope = 2 * np.abs(design.T @ residual).max() / n
        square, on_target = residual @ residual / n, own @ residual / n
        s = np.clip(on_target / square, -eta[i] / slope, eta[i] / slope)
        primal = square + eta[i] * np.abs(w).sum()
        worst = max(worst, (primal - (2 * s * on_target - s * s * square)) / primal)
        found[i] = np.insert(w, i, 0.0)
    return seconds / len(chosen), worst, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--sample", type=int, default=20, help="classes of the scikit-learn loops; 0 for none")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.1, 0.03, 0.01], help="in units of the median η_max")
    parser.add_argument("--table", action="store_true", help="also time independence_deficit as a whole")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    logits, labels = planted(options.samples, options.classes, options.width, options.seed)
    placed = logits.to(device)
    known = ", ".join(f"{k} {v}" for k, v in versions().items() if k in ("python", "torch", "numpy"))
    print(f"{device_name(device)}; {known}, scikit-learn {sklearn.__version__}; {options.threads} CPU threads")
    accuracy = float((logits.argmax(1) == labels).double().mean())
    print(f"N={options.samples}, c={options.classes}, d={options.width}, seed {options.seed}: "
          f"logit variance {float(logits.var(0).mean()):.2f}, accuracy {accuracy:.3f}")  # fmt: skip
    start = clock(device)
    fitted = moments(placed, torch.arange(options.samples, device=device))
    gram_seconds = clock(device) - start
    own = torch.arange(options.classes, device=device)
    top = eta_max(fitted.gram, own)
    x = reduced = gram = None
    if options.sample:
        gram = fitted.gram.cpu().numpy()
        reduced = np.sqrt(options.classes) * torch.linalg.cholesky(fitted.gram).cpu().numpy().T
    chosen = range(0, options.classes, max(1, options.classes // max(options.sample, 1)))
    print(f"Gram matrix of all logits: {gram_seconds:.2f} s\n")
    print("| η/η_max (median) | mean ‖λ‖₀ | solved, s | largest gap | unsolved | loop reduced, s | ratio | loop, s "
          "| ratio "
          "| loop's gap | max difference |\n|" + "---|" * 11)  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        solve_lasso(SharedGram(fitted.gram), fitted.gram, fitted.gram.diagonal(), 0.5 * top, own)  # load the libraries
    lines = []
    for share in options.eta:
        eta = torch.full_like(top, share * float(top.median()))
        start = clock(device)
        found = solve_lasso(SharedGram(fitted.gram), fitted.gram, fitted.gram.diagonal(), eta, own)
        seconds = clock(device) - start
        lines.append((share, eta, found, seconds))
    ours = peak(device)
    for _share, eta, found, seconds in lines:
        ratios = float((eta / top).median())
        nonzero = float((found.coefficients != 0).double().sum(1).mean())
        cells = [f"{ratios:.3g}", f"{nonzero:.0f}", f"{seconds:.2f}", f"{float(found.gap.max()):.1e}",
                 str(int((found.gap > 1e-6).sum()))]  # fmt: skip
        if options.sample:
            few, _, _ = loop(reduced, reduced.T @ reduced, eta.cpu().numpy(), chosen)
            if x is None:
                x = (logits.double() - fitted.mean.cpu()).numpy()
                full_gram = gram * options.samples
            some = chosen[:: max(1, len(chosen) // 5)]
            full, gap, weights = loop(x, full_gram, eta.cpu().numpy(), some)
            mine = found.coefficients.cpu().numpy()
            difference = max(float(np.abs(mine[i] - w).max()) for i, w in weights.items())
            total, whole = few * options.classes, full * options.classes
            cells += [f"{total:.1f}", f"{total / seconds:.1f}", f"{whole:.0f}"]
            cells += [f"{whole / seconds:.1f}", f"{gap:.1e}", f"{difference:.1e}"]
        else:
            cells += ["–"] * 6
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nPeak memory until the solutions were there: {ours:.2f} GB "
          f"({'on the device' if device.type == 'cuda' else 'of the process, synthetic data included'})")  # fmt: skip
    if options.table:
        for name, eta_value in (("one η", 0.03 * float(top.median())), ("eta=None", None)):
            start = clock(device)
            table = independence_deficit(placed, labels, eta=eta_value, permutations=1)
            counts = {s: sum(r.status == s for r in table) for s in sorted({r.status for r in table})}
            print(f"independence_deficit, {name}, 1 permutation: {clock(device) - start:.1f} s, {counts}", flush=True)
        print(f"Peak memory in all: {peak(device):.2f} GB")


def peak(device: torch.device) -> float:
    """GB of 10⁹ bytes: of the process, or allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
