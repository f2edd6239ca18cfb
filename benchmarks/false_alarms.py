"""How often the check of the derivative against the function itself warns about networks where nothing leaves.

    python benchmarks/false_alarms.py [--seeds 3] [--only NAME …] [--leak part|norm] [--float32]

Random networks of timm and small ones of every kind of kink and tie, with the image and with zeros around the patch, on
noise and on images of flat regions (every maximum over a flat region is a tie). BatchNorm has the statistics of data.
Chains of tanh layers that stretch up to 10^12 times have no step short enough for the plain comparison.
Prints one line a network: warnings, runs, and runs that say they could not be checked; on one CPU core twenty minutes.
With --leak part a fifth of one block's output is detached, with --leak norm the block's output is divided by its norm,
detached, so every run should warn. With --float32 there is no certificate and so no float64 pass.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.loading import calibrate_batchnorm, load_model

TIMM = (
    "test_resnet", "test_vit", "test_vit2", "test_vit3", "test_vit4", "test_mambaout", "test_convnext",
    "test_convnext2", "test_convnext3", "test_efficientnet", "test_efficientnet_gn", "test_efficientnet_ln",
    "test_efficientnet_evos", "test_byobnet", "test_nfnet", "resnet18", "resnet10t", "mobilenetv3_small_050",
    "regnetx_002", "ghostnet_050", "gmixer_12_224", "resmlp_12_224", "vit_tiny_patch16_224", "swin_s3_tiny_224",
    "densenet121",
)  # fmt: skip


def _net(activation: Callable[[], nn.Module], pool: Callable[[], nn.Module], norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((3, 8), (8, 12), (12, 12)):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), activation(), pool()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 4 * 4, 10))


SMALL: dict[str, Callable[[], nn.Module]] = {
    f"{act.__name__}, {pool.__name__}{', BatchNorm' if norm else ''}": lambda a=act, p=pool, n=norm: _net(
        a, lambda: p(2), n
    )
    for act in (nn.ReLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)
    for pool in (nn.MaxPool2d, nn.AvgPool2d)
    for norm in (False, True)
}
SMALL["Softmax, MaxPool2d"] = lambda: _net(lambda: nn.Softmax(1), lambda: nn.MaxPool2d(2), norm=False)
SMALL["ReLU without biases"] = lambda: nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(),
    nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(128, 10, bias=False), nn.ReLU(),
)  # fmt: skip


def _chain(deviation: float, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=deviation / 8)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


CHAINS = {f"tanh chain, σ_w = {s}, {d} deep": (s, d) for s in (2, 3, 5) for d in (10, 30, 60)}


def network(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Random weights and random scales of its norms, statistics of data."""
    torch.manual_seed(seed)
    if name in CHAINS:
        return _chain(*CHAINS[name]).eval(), (64,)
    if name in SMALL:
        model, shape = SMALL[name]().eval(), (3, 32, 32)
    else:
        loaded = load_model(f"timm:{name}", weights="random", seed=seed)
        model, shape = loaded.model.eval(), tuple(loaded.input_size)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and seed % 2:
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    calibrate_batchnorm(model, torch.randn(4, *shape))
    return model, shape


def image(shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise for even seeds, flat squares for odd ones."""
    generator = torch.Generator().manual_seed(seed)
    if seed % 2 == 0 or len(shape) == 1:
        return torch.randn(1, *shape, generator=generator)
    coarse = torch.randn(1, shape[0], 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=shape[1:], mode="nearest")


LEAKS: dict[str, Callable[..., Tensor]] = {
    "part": lambda _, __, out: 0.8 * out + 0.2 * out.detach(),
    "norm": lambda _, __, out: out * (out.numel() ** 0.5 / out.norm().detach()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--leak", choices=list(LEAKS), help="let something leave in the middle block")
    parser.add_argument("--float32", action="store_true", help="without a certificate, so without a float64 pass")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    alarms = silent = runs = 0
    names = arguments.only or [*SMALL, *CHAINS, *dict.fromkeys(TIMM)]
    for name in names:
        here: list[str] = []
        count = open_ = 0
        for seed, background in itertools.product(range(arguments.seeds), ("image", "zero")):
            model, shape = network(name, seed)
            if len(shape) == 1 and background == "zero":
                continue
            if arguments.leak:
                blocks = rs.layers(model, torch.randn(1, *shape)).default
                middle = model.get_submodule(blocks[len(blocks) // 2].split("#")[0])
                middle.register_forward_hook(LEAKS[arguments.leak])
            given = {"background": background, "progress": False, "certify": not arguments.float32}
            columns = {"columns": rs.Patch(2)} if len(shape) == 3 else {}
            profile = rs.jacobian_rank(model, image(shape, seed), **columns, **given)
            found = [f for f in profile.facts if f.kind in (FactKind.LEAVES_COMPUTATION, FactKind.RANDOM_MODEL)]
            open_ += bool(of_kind(profile.facts, FactKind.FUNCTION_UNCHECKED))
            here += [f"{background}, seed {seed}: {f.kind} at {f['where']}" for f in found]
            count += 1
        alarms, silent, runs = alarms + len(here), silent + open_, runs + count
        print(f"{name:<34} {len(here)} of {count}, {open_} not checked  {' | '.join(here)}", flush=True)
    print(f"{alarms} of {runs} runs on {len(names)} networks warned, {silent} could not be checked")


if __name__ == "__main__":
    main()
