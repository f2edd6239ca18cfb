"""One random call against its truth: every cut point of every sample, and everything around it."""

from __future__ import annotations

import math
import re
import time
import traceback
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rankscope as rs
from fuzzing.calls import Call, make_call
from fuzzing.choices import Choices
from fuzzing.networks import make
from fuzzing.oracle import Truth, truth_of
from fuzzing.outcome import ORDER, Outcome
from fuzzing.unchanged import difference, picture

__all__ = ["run"]

EPS32 = 2.0**-23
_TOLERANCES = ("paper", "reference", "torch", 1e-2, 1e-3, 1e-5)
_NOISE = 1e-14  # of the largest entry in the network: what cancels exactly, as the mean of a normed map, leaves this
_UNSURE = 1e-12  # of σ₁: what the truth itself, computed in float64, may err by


def run(seed: int, *, verbose: bool = False) -> Outcome:
    """One random network and call. Never raises."""
    started = time.process_time()
    choices = Choices(seed)
    cells: Counter[str] = Counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status, detail = _run(choices, cells, verbose)
    except Exception as error:  # the generator or the oracle itself is at fault
        status, detail = "raw error", f"in the fuzzer: {_where(error)}"
        cells["raw error"] += 1
    return Outcome(
        seed, status, tuple(choices.used), detail[:600], dict(cells), round(time.process_time() - started, 3)
    )


def _run(c: Choices, cells: Counter[str], verbose: bool) -> tuple[Any, str]:
    made = make(c)
    model, call = make_call(c, made)
    truths = [truth_of(model, s.x, s.keyword, s.extra, call.work) for s in call.samples]
    expected = sum(len(t.jacobians) for t in truths)
    if verbose:
        print(model, call.options, [tuple(s.x.shape) for s in call.samples], sep="\n")
    before = picture(model, call.inputs)
    profile, failed, status, detail = None, None, "", ""
    try:
        profile = rs.jacobian_rank(model, call.inputs, **call.options)
    except rs.RankscopeError as error:
        named = all(re.search(rf"\b{word}\b", str(error)) for word in ("shared", "per_sample")) or (
            "differentiate" in str(error)
        )
        status = "ambiguous" if call.ambiguous and named else "refused"
        detail = f"{type(error).__name__}: {error}"
        if status == "refused" and _nothing(truths):
            status = "measured"  # no cut point depends on the input, and that is what the error says
    except Exception as error:
        failed = error
        status, detail = "raw error", _where(error)
    changed = difference(before, picture(model, call.inputs))
    if verbose:
        print(profile if failed is None else "".join(traceback.format_exception(failed)))
    if changed:
        return "changed", f"{changed} {detail}"
    if profile is None:
        cells[status] += expected
        return status, detail
    notes: list[str] = []
    _compare(profile, call, truths, cells, notes, verbose, 0.0 if made.scaled else _NOISE)
    worst = next((s for s in ORDER if cells[s]), "measured")
    return worst, "; ".join(notes[:4])


def _nothing(truths: list[Truth]) -> bool:
    return not any(bool(j.any()) for t in truths for parts in t.jacobians.values() for j in parts)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = [f for f in traceback.extract_tb(error.__traceback__) if "rankscope" in f.filename]
    at = f" under {inside[-1].filename.rpartition('rankscope/')[2]}:{inside[-1].lineno}" if inside else ""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]} ({last.filename.rpartition('/')[2]}:{last.lineno}{at})"


def _compare(
    profile: Any,
    call: Call,
    truths: list[Truth],
    cells: Counter[str],
    notes: list[str],
    verbose: bool,
    noise: float,
) -> None:
    if len(profile.images) != len(call.samples):
        cells["wrong"] += 1
        notes.append(f"{len(profile.images)} samples where {len(call.samples)} were given")
        return
    measured = {layer.name: layer for layer in profile.layers}
    for i, truth in enumerate(truths):
        if truth.kink:
            cells["kink"] += len(measured)
            continue
        floor = noise * max((float(j.abs().max()) for p in truth.jacobians.values() for j in p if j.numel()), default=0)
        for name, layer in measured.items():
            wanted = _wanted(truth, name)
            if isinstance(wanted, str):  # this sample never calls it
                empty = layer.spectra[i] is None
                status, note = ("measured", "not called") if empty else ("wrong", "measured, and never called")
            else:
                status, note = _cell(layer.spectra[i], wanted, call, floor)
            cells[status] += 1
            if status not in ("measured", "near"):
                notes.append(f"{name}, sample {i}: {status}: {note}")
            if verbose:
                print(f"{name:<24} sample {i}: {status} {note}")
    _complete(profile, truths, call.work, cells, notes)


def _key(name: str) -> tuple[str, int]:
    base, _, number = name.partition("#")
    return base, int(number) - 1 if number.isdigit() else 0 if not number else -1  # "m#2.logits" is no whole call


def _place(truth: Truth, name: str) -> tuple[tuple[str, int], str] | None:
    """The call that a cut point's name stands for, and which of its tensors (all of them: no path)."""
    if name == "output" or name.startswith("output."):
        return ("", 0), name.removeprefix("output").removeprefix(".")
    if _key(name) in truth.jacobians:
        return _key(name), ""
    for k in range(len(name) - 1, 0, -1):  # a module's call, then the path of one tensor of several
        if name[k] in ".:" and "#" not in name[k:] and _key(name[:k]) in truth.jacobians:
            return _key(name[:k]), name[k + 1 :]
    return None


def _wanted(truth: Truth, name: str) -> Tensor | str:
    """The Jacobian that a cut point's name stands for: all tensors that a call returned, or one by its place."""
    found = _place(truth, name)
    if found is None:
        return "absent"
    key, path = found
    parts = truth.jacobians[key]
    if not path:
        return torch.cat(parts) if parts else "absent"
    return parts[truth.paths[key].index(path)] if path in truth.paths[key] else "absent"


def _complete(profile: Any, truths: list[Truth], work: torch.dtype, cells: Counter[str], notes: list[str]) -> None:
    """Every call that depends on the input is measured or named; and so is the network's own output.

    What is named may be missing where no number of the working precision is as large as the derivative there or before.
    """
    if all(t.kink for t in truths):
        return
    for truth in truths:
        places = {_place(truth, layer.name) for layer in profile.layers} - {None}
        present = {place[0] for place in places if place is not None}
        held = {id(j) for key in present for j in truth.jacobians[key]}
        beyond = False
        named: set[int] = set()  # the network's output is named by the module that returned it
        for key, parts in truth.jacobians.items():
            beyond = beyond or any(float(j.abs().max()) > torch.finfo(work).max for j in parts if j.numel())
            live = [j for j in parts if bool((j != 0).any())]
            if live and key not in present and not all(id(j) in held for j in live):
                name = f"{key[0]}#{key[1] + 1}" if key[0] else "output"
                spellings = [name, *([key[0]] if key[0] and not key[1] else [])]
                word = next((profile.unmeasured[s] for s in spellings if s in profile.unmeasured), None)
                if beyond and (word is not None or all(id(j) in named for j in live)):
                    named |= {id(j) for j in live}
                    cells["range"] += 1
                    continue
                cells["incomplete"] += 1
                notes.append(f"{name} is missing: {word or 'without a word'}")


def _cell(spectrum: Any, jacobian: Tensor, call: Call, floor: float) -> tuple[str, str]:
    if call.directions is not None:
        jacobian = jacobian @ call.directions.T
    if spectrum is None:
        return ("measured", "") if not bool(torch.isfinite(jacobian).all()) else ("uncertified", "nothing measured")
    if tuple(spectrum.shape) != tuple(jacobian.shape):
        return "wrong", f"shape {tuple(spectrum.shape)}, truth {tuple(jacobian.shape)}"
    if not bool(torch.isfinite(jacobian).all()):
        return "wrong", "a spectrum where the truth is not finite"
    sigma = singular_values(jacobian)
    found = np.asarray(spectrum.singular_values)
    own = spectrum.rank(call.options["tolerance"])
    if sigma.max(initial=0.0) <= floor and sigma.any():
        return "noise", "zero but for the truth's own rounding"
    if not own.certified:
        low, high, _ = true_rank(sigma, jacobian.shape, call.options["tolerance"], call.work)
        right = low <= own.value <= high
        return "uncertified", f"value {own.value}, truth {low}" + ("" if right else " (another value)")
    for tolerance in _TOLERANCES:
        low, high, tau = true_rank(sigma, jacobian.shape, tolerance, call.work)
        estimate = spectrum.rank(tolerance)
        if estimate.lower > high or estimate.upper < low:
            return "wrong", f"{tolerance}: [{estimate.lower}, {estimate.upper}] where {low} is right, τ {tau:.3g}"
    off = _beyond(found, sigma, spectrum)
    if off:
        return "wrong", off
    low, high, tau = true_rank(sigma, jacobian.shape, call.options["tolerance"], call.work)
    width = own.upper - own.lower
    trivial = own.lower == 0 and own.upper == min(jacobian.shape) and width > 0
    if width <= max(1, 0.05 * own.value) and not trivial:
        return "measured", f"{own.value} [{own.lower}, {own.upper}]"
    error = 2 * spectrum.error_bound + math.sqrt(getattr(spectrum, "square_error", 0.0))
    gap = np.abs(sigma - tau).min() if len(sigma) else math.inf
    note = f"[{own.lower}, {own.upper}] where {low} is right; gap at τ {gap / tau if tau else 0:.1g} τ"
    note += f", certified error {spectrum.error_bound / tau if tau else 0:.1g} τ"
    return ("near" if gap <= error and spectrum.error_bound < 1e-4 * sigma.max(initial=0.0) else "wide"), note


def singular_values(jacobian: Tensor) -> np.ndarray:
    """In float64; scaled by a power of two before, so that nothing under- or overflows."""
    largest = float(jacobian.abs().max()) if jacobian.numel() else 0.0
    if not largest:
        return np.zeros(min(jacobian.shape))
    exponent = math.frexp(largest)[1]
    small = torch.ldexp(jacobian, torch.tensor(-exponent // 2))
    small = torch.ldexp(small, torch.tensor(-exponent - (-exponent // 2)))
    return np.ldexp(torch.linalg.svdvals(small).numpy(), exponent)


def true_rank(sigma: np.ndarray, shape: Any, tolerance: Any, work: torch.dtype) -> tuple[int, int, float]:
    """The rank, as the least and the most that the truth's own rounding allows, and the threshold."""
    rows, columns = shape
    top = float(sigma.max(initial=0.0))
    relative = {
        "paper": EPS32 * min(rows, columns),
        "reference": math.sqrt(EPS32 * columns),
        "torch": torch.finfo(work).eps * max(rows, columns),
    }.get(tolerance, tolerance)
    tau, slack = relative * top, _UNSURE * top
    positive = sigma > 0
    low = int(((sigma > tau + slack) & positive).sum())
    high = int(((sigma >= tau - slack) & positive).sum())
    return low, high, tau


def _beyond(found: np.ndarray, sigma: np.ndarray, spectrum: Any) -> str:
    """Weyl: every singular value is known to the error bound, and its square to the error of the Gram matrix."""
    top = max(float(sigma.max(initial=0.0)), float(found.max(initial=0.0)))
    if top == 0:
        return ""
    bound = spectrum.error_bound / top + _UNSURE
    squares = getattr(spectrum, "square_error", 0.0) / top / top
    a, b = found / top, sigma / top
    high = np.sqrt(a**2 + squares) + bound
    low = np.sqrt(np.maximum(a**2 - squares, 0.0)) - bound
    bad = (b > high) | (b < low)
    if not bad.any():
        return ""
    k = int(np.argmax(bad))
    return f"σ_{k + 1} is {found[k]:.6g} where {sigma[k]:.6g} is right, certified to {spectrum.error_bound:.2g}"
