"""Train one of the paper's six networks on the formula-driven image set, from nothing, in minutes.

    python examples/fractals/train.py --model resnet18 --minutes 2.5 --out weights

No download: the images are made on the device between two steps. The clock sets the schedule (progress is the elapsed
share of ``--minutes``), so a run ends on time with the rate at zero on any machine; ``--steps`` sets it by steps
instead, which repeats exactly. Networks that take images of any size see them at half the side first, where a step
costs a quarter. Writes ``<out>/<model>.safetensors`` with the recipe, and prints one line of JSON. What is reported is
the accuracy of the weights as written. Nothing is chosen on the test images: progress is watched on a third split.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from rankscope import RankscopeError
from rankscope.datasets import FractalBatches, FractalSpec, FractalTestSet
from rankscope.loading import ensure_torchvision, resolve_device

WARM_UP = 0.08  # share of the run
SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is trained.

    ``rate`` is for a batch of 512 and grows with its square root; ``half`` is the share of the run at half the side.
    """

    rate: float
    decay: float
    clip: float
    batch: int = 512
    channels_last: bool = False
    half: float = 0.0


RECIPES = {
    "resnet18": Recipe(rate=2e-3, decay=0.05, clip=5.0, channels_last=True, half=0.6),
    "resnet50": Recipe(rate=2e-3, decay=0.05, clip=5.0, batch=256, channels_last=True, half=0.6),
    "vit_tiny_patch16_224": Recipe(rate=1.2e-3, decay=0.05, clip=1.0, batch=1024, half=0.6),
    "gmixer_24_224": Recipe(rate=1e-3, decay=0.05, clip=1.0, batch=256),
    "resmlp_24_224": Recipe(rate=1e-3, decay=0.05, clip=1.0, batch=256),
    "swin_tiny_patch4_window7_224": Recipe(rate=1e-3, decay=0.05, clip=1.0, batch=256),
}


def build(name: str, *, classes: int, size: int) -> nn.Module:
    """The timm network with random weights and a head of ``classes``."""
    ensure_torchvision()
    import timm

    sized: dict[str, object] = {} if name.startswith("resnet") or size == 224 else {"img_size": size}
    if name.startswith("vit"):
        sized["dynamic_img_size"] = True  # position embeddings are interpolated for images of another size
    return timm.create_model(name, pretrained=False, num_classes=classes, **sized)


def groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels; none for biases, normalisation and position embeddings."""
    free = [p for n, p in network.named_parameters() if p.ndim < 2 or "pos_embed" in n or "cls_token" in n]
    held = {id(p) for p in free}
    rest = [p for p in network.parameters() if id(p) not in held]
    return [{"params": rest, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}]


def rate_at(progress: float) -> float:
    """Share of the highest rate: linear warm-up, then half a cosine to zero."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def half_precision(device: torch.device, *, on: bool) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if on else contextlib.nullcontext()


@torch.no_grad()
def accuracy(network: nn.Module, held_out: FractalTestSet, device: torch.device, *, batch: int, bf16: bool) -> float:
    """Share of the images classified right, in evaluation mode; the network is left as it came."""
    training = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in held_out.test_batches(device, batch):
        with half_precision(device, on=bf16):
            right += (network(images).argmax(1) == labels).sum()
    network.train(training)
    return int(right) / len(held_out)


@dataclass
class Run:
    """What a training run took."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    first_step_seconds: float = 0.0


def train(
    network: nn.Module, spec: FractalSpec, device: torch.device, recipe: Recipe, given: argparse.Namespace
) -> Run:
    """Fit ``network`` in place."""
    peak = recipe.rate * math.sqrt(recipe.batch / 512)
    if given.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups(network, 5e-5), lr=peak, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups(network, recipe.decay), lr=peak, fused=device.type == "cuda")
    stepped = torch.compile(network) if given.compile else network
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    batches = FractalBatches(spec, recipe.batch, device=device)
    half = replace(spec, size=spec.size // 2) if recipe.half else spec  # an image has a least size
    smaller = FractalBatches(half, recipe.batch, device=device, split="train")
    bf16 = not given.float32
    network.train()
    run = Run()
    began = started = time.perf_counter()
    watched = 0.0
    while True:
        # The first step compiles, tunes and makes the classes: the clock starts after it.
        progress = run.steps / given.steps if given.steps else (time.perf_counter() - started) / (60 * given.minutes)
        if progress >= 1 and run.steps:
            break
        rate = peak * rate_at(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = next(smaller if progress < recipe.half else batches)
        with half_precision(device, on=bf16):
            logits = stepped(images.contiguous(memory_format=layout))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        run.steps += 1
        run.images += len(labels)
        if run.steps == 1:
            loss.item()  # waits for the device
            started = time.perf_counter()
            run.first_step_seconds = started - began
        # reading the loss is the only wait for the device: without it the host would run ahead of the clock
        if run.steps % given.log_every == 0:
            value, right = float(loss.detach()), float((logits.argmax(1) == labels).float().mean())
            elapsed = time.perf_counter() - started
            speed = (run.images - recipe.batch) / max(elapsed, 1e-9)
            print(
                f"step {run.steps:5d}  {100 * progress:5.1f}%  loss {value:.3f}  batch accuracy {right:.3f}  "
                f"rate {rate:.2e}  gradient {float(norm):.2f}  {speed:,.0f} images/s",
                flush=True,
            )
            if not math.isfinite(value):
                raise SystemExit(f"the loss is {value} at step {run.steps}; use a lower --rate than {peak:.1e}")
        if progress - watched >= 0.25:
            watched = progress
            found = accuracy(
                network, FractalTestSet(spec, per_class=2, split="validation"), device, batch=recipe.batch, bf16=bf16
            )
            print(f"step {run.steps:5d}  validation accuracy {found:.4f}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    run.seconds = time.perf_counter() - started
    return run


@torch.no_grad()
def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round every floating tensor to ``dtype`` in place, so that what is evaluated is what is written."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
            if not bool(tensor.isfinite().all()):
                raise SystemExit(f"{name} does not fit {dtype}; write with --dtype float32")


def write(network: nn.Module, path: Path, dtype: torch.dtype, metadata: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous() for k, v in network.state_dict().items()
    }
    save_file(tensors, path, metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})


def measure_generator(spec: FractalSpec, device: torch.device, batch: int) -> float:
    """Images per second of the generator alone."""
    batches = FractalBatches(spec, batch, device=device)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        images, _labels = next(batches)
        float(images[-1, 0, 0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return batch / sorted(seconds)[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network of the paper on formula-driven images.")
    parser.add_argument("--model", default="resnet18", choices=sorted(RECIPES))
    parser.add_argument("--minutes", type=float, default=2.5, help="length of the training; the schedule follows it")
    parser.add_argument("--steps", type=int, help="set the schedule by steps instead")
    parser.add_argument("--out", type=Path, default=Path("fractal-weights"), help="folder, or a .safetensors file")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the written weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (the images have --data-seed)")
    parser.add_argument("--batch", type=int, help="default: 512, or 256 for the larger networks")
    parser.add_argument("--half", type=float, help="share of the run at half the side; default: the recipe's")
    parser.add_argument("--rate", type=float, help="highest rate for a batch of 512")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step's network")
    parser.add_argument("--float32", action="store_true", help="train without bf16 autocast")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--test-per-class", type=int, default=50, help="test images of each class")
    for name, kind in (("classes", int), ("size", int), ("perturbation", float), ("rotation", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(FractalSpec(), name))
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--no-flip", action="store_true", help="never mirror an image")
    given = parser.parse_args()
    if given.batch is not None and given.batch < 2:
        parser.error(f"--batch is {given.batch}; BatchNorm needs two images or more")
    if given.half and not RECIPES[given.model].half:
        parser.error(f"--half {given.half}: {given.model} takes images of one size only")
    for name, least in (("minutes", 0), ("steps", 1), ("log_every", 1), ("test_per_class", 1)):
        value = getattr(given, name)
        if value is not None and (value < least or value == 0):
            parser.error(f"--{name.replace('_', '-')} is {value}; give at least {least or 'something above 0'}")
    if given.optimizer == "sgd" and given.rate is None:
        given.rate = 0.5
    return given


def main() -> None:
    given = arguments()
    device = resolve_device(given.device)
    torch.manual_seed(given.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    spec = FractalSpec(
        classes=given.classes,
        size=given.size,
        seed=given.data_seed,
        perturbation=given.perturbation,
        rotation=given.rotation,
        flip=not given.no_flip,
    )
    base = RECIPES[given.model]
    recipe = Recipe(
        rate=given.rate or base.rate,
        decay=base.decay,
        clip=base.clip,
        batch=given.batch or base.batch,
        channels_last=base.channels_last,
        half=base.half if given.half is None else given.half,
    )
    network = build(given.model, classes=spec.classes, size=spec.size).to(device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    generator = measure_generator(spec, device, recipe.batch)
    print(f"{given.model} on {device}: the generator alone makes {generator:,.0f} images/s", flush=True)

    run = train(network, spec, device, recipe, given)

    dtype = getattr(torch, given.dtype)
    round_weights(network, dtype)
    tested = time.perf_counter()
    subset = FractalTestSet(spec, per_class=min(10, given.test_per_class))
    whole = FractalTestSet(spec, per_class=given.test_per_class)
    quick = accuracy(network, subset, device, batch=recipe.batch, bf16=False)
    print(f"first {len(subset):,} test images: {quick:.4f}", flush=True)
    top1 = accuracy(network, whole, device, batch=recipe.batch, bf16=False)

    path = given.out if given.out.suffix == ".safetensors" else given.out / f"{given.model}.safetensors"
    described = (
        f"{given.optimizer}, weight decay {5e-5 if given.optimizer == 'sgd' else recipe.decay}, highest rate "
        f"{recipe.rate * math.sqrt(recipe.batch / 512):.2e}, warm-up {WARM_UP:.0%} then cosine to 0, batch "
        f"{recipe.batch}, gradient clipped at {recipe.clip}, label smoothing {SMOOTHING}, "
        f"half the side for the first {recipe.half:.0%}, "
        f"{'float32' if given.float32 else 'bfloat16 autocast'}, schedule by {'steps' if given.steps else 'time'}"
    )
    record: dict[str, object] = {
        "model": given.model,
        "data": asdict(spec),
        "recipe": described,
        "test_accuracy": round(top1, 5),
        "test_images": len(whole),
        "test_subset_accuracy": round(quick, 5),
        "steps": run.steps,
        "images_seen": run.images,
        "train_seconds": round(run.seconds, 2),
        "first_step_seconds": round(run.first_step_seconds, 2),
        "images_per_second": round((run.images - recipe.batch) / run.seconds, 1),
        "generator_images_per_second": round(generator, 1),
        "test_seconds": round(time.perf_counter() - tested, 2),
        "seed": given.seed,
        "dtype": given.dtype,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "script": "examples/fractals/train.py",
    }
    write(network, path, dtype, record)
    print(json.dumps({**record, "weights": str(path), "bytes": path.stat().st_size}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except RankscopeError as error:
        raise SystemExit(f"error: {error}") from None
