"""A language model's decoder on one GPU: seconds, peak memory and certified cells at every block.

    python benchmarks/decoder.py --parameters 7b --device cuda --out runs/decoder.json      # 64 directions
    python benchmarks/decoder.py --parameters 7b --device cuda --columns position --out runs/position.json
    python benchmarks/decoder.py --parameters tiny --device cpu --columns both

The decoder is LLaMA's (a configuration of transformers), in float32, with random weights that are drawn on the device:
time and memory do not depend on them. One sample of random tokens is measured at every block, with Gaussian directions
(``sketch``) or with all coordinates of the last token (``position``), certificate included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.views.sentences import phrase

# width, inner width, blocks, heads, words
SIZES = {
    "tiny": (96, 256, 3, 4, 300),
    "100m": (768, 2048, 12, 12, 16000),
    "1b": (2048, 5504, 22, 16, 32000),
    "7b": (4096, 11008, 32, 32, 32000),
}


def decoder(size: str, tokens: int, device: torch.device) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner, blocks, heads, words = SIZES[size]
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=max(tokens, 2048),
        use_cache=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    with torch.device(device):
        made: torch.nn.Module = LlamaForCausalLM(config)
    return made.float().eval()


def measured(model: torch.nn.Module, ids: torch.Tensor, columns: Any, budget: str | None) -> dict[str, Any]:
    device = ids.device
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    profile = rs.jacobian_rank(
        model, {"input_ids": ids}, columns=columns, cut_points="blocks", memory_budget=budget, progress=True
    )
    took = time.perf_counter() - started
    cells = [s for layer in profile.layers for s in layer.spectra]
    kinds = {fact.kind for fact in profile.facts}
    return {
        "columns": profile.columns.count,
        "seconds": took,
        "peak GB": _peak(device) / 1e9,
        "cells": len(cells),
        "certified": sum(s is not None and s.error_bound < float("inf") for s in cells),
        "function rank": list(profile.function_rank),
        "method": phrase(profile.method),
        "chunk": profile.chunk_size,
        "converted on demand": FactKind.WEIGHTS_ON_DEMAND in kinds,
        "notes": list(profile.notes),
    }


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # of the whole process


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SIZES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--columns", choices=["sketch", "position", "both"], default="sketch")
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--memory-budget")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    args = parsed(given)
    device = torch.device(args.device)
    started = time.perf_counter()
    model = decoder(args.parameters, args.tokens, device)
    words = SIZES[args.parameters][4]
    ids = torch.randint(words, (1, args.tokens), generator=torch.Generator().manual_seed(1)).to(device)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {args.tokens} tokens, made in {time.perf_counter() - started:.1f} s", flush=True)
    every = {"sketch": rs.Sketch(args.directions), "position": rs.Positions([args.tokens - 1])}
    rows = []
    for name, columns in every.items():
        if args.columns in (name, "both"):
            found = {"name": name, "parameters": count, "device": _name(device), "torch": torch.__version__}
            rows.append(found | measured(model, ids, columns, args.memory_budget))
            print(json.dumps(rows[-1], indent=1), flush=True)
            if args.out is not None:  # after each, so that an interrupted run leaves the first
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(rows, indent=1))
    return rows


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
