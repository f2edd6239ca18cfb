"""Weights from a file into a model: all of them or none, and what was left over by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import ModelError, UsageError, nearest, parameter, type_and_line
from rankscope._base.facts import Fact, FactKind
from rankscope._base.text import counted
from rankscope.loading.weight_files import few, read_file, same, tensors_by_name
from rankscope.loading.weight_places import Names, Place, averaged, is_counter, places_of, without_wrappers

__all__ = ["MisfitError", "Translation", "Weights", "check_finite", "load_weights", "read_weights"]

Translation = Callable[[dict[str, Any], nn.Module], Mapping[str, Any]]


class Weights(NamedTuple):
    """What was loaded: one line for the record, and facts on what was chosen, left over or rounded."""

    description: str
    facts: tuple[Fact, ...] = ()


class MisfitError(ModelError):
    """The file is whole, and its tensors are not those of the model."""


def read_weights(path: str | Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a file of weights by its dotted name, on the CPU; with ``key`` those under it.

    See ``read_file`` for what can be read. Raises ``ModelError`` where there is no tensor, and ``UsageError`` for a key
    that the file has not.
    """
    found = read_file(path)
    tensors = tensors_by_name(found)
    if key is not None:
        return _under(tensors_by_name(found, everything=True), key, path)
    if not tensors:
        held = f"keys {few(map(str, found))}" if isinstance(found, Mapping) and found else f"a {type(found).__name__}"
        raise ModelError(f"weights file {str(path)!r} holds no state dict ({held}); save model.state_dict()")
    return tensors


def load_weights(
    model: nn.Module, path: str | Path, *, key: str | None = None, translate: Translation | None = None
) -> Weights:
    """Put the weights of a file into ``model``; every tensor that the model saves must be in the file, in its shape.

    The weights may be nested (``state_dict``, ``model``, ``encoder`` …), carry a prefix (``model.``, ``backbone.``),
    and have other parts beside them (a criterion, a head that the model lacks): the facts name what was left over.
    Where several parts of the file fit, those that are not averaged (``ema``, ``swa``) are taken and a fact says so;
    where that leaves several, ``key`` has to choose. ``translate`` maps names of another code base, as timm's
    ``checkpoint_filter_fn`` does; it is asked where the names as they are do not fit.

    Raises ``MisfitError`` naming the first missing, unknown and misshapen tensors, ``UsageError`` where ``key`` has to
    choose, ``ModelError`` for tensors that the model's kind cannot hold, and for NaN or infinite values. The model is
    then left as it was.
    """
    path = Path(path).expanduser()
    raw = read_weights(path, key)
    flat = {plain: raw[name] for name, plain in without_wrappers(raw).items()}
    names = Names(model)
    places = places_of(flat, names)
    fitting = [place for place in places if place.fits]
    facts: list[Fact] = []
    used: Mapping[str, torch.Tensor]
    if fitting:
        place, said = _choose(fitting, path)
        facts += said
        _check(place.given, names, path)
        facts += _put(model, place.given, names)
        used = place.given
        beside = place.beside
        where = place.prefix.rstrip(".")
    else:
        failures: list[str] = []
        done = _through_torch(model, flat, places, names, path) or _translated(
            model, flat, places, names, path, translate, failures
        )
        if done is None:
            raise MisfitError("; ".join([_misfit(path, places[0], flat, names, key), *dict.fromkeys(failures)]))
        used, beside, where, said = done
        facts += said
    if beside:
        facts.append(Fact(FactKind.FILE_LEFT_OVER, {"file": path.name, "names": tuple(beside)}))
    kinds = {_kind(v) for v in used.values() if v.is_floating_point()}
    stored = "" if kinds <= {"float32"} else f", stored as {', '.join(sorted(kinds))}"
    under = ".".join(p for p in (key, where) if p)
    chosen = f", from {under!r}" if under else ""
    return Weights(f"file {path.name} ({counted(len(used), 'tensor')}{stored}{chosen})", tuple(facts))


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], holder: str) -> None:
    """Raise ``ModelError`` naming the first tensor that holds NaN or infinite values.

    >>> check_finite([("weight", torch.tensor([float("nan")]))], "the model")
    Traceback (most recent call last):
    rankscope._base.errors.ModelError: the model holds NaN or infinite values in 'weight' (1 of 1): ...
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(
                    f"{holder} holds NaN or infinite values in {name!r} ({bad} of {tensor.numel()}): "
                    "its training diverged or the file is damaged; take an earlier checkpoint"
                )


def _under(flat: dict[str, torch.Tensor], key: str, path: str | Path) -> dict[str, torch.Tensor]:
    start = key.rstrip(".") + "."
    found = {name.removeprefix(start): tensor for name, tensor in flat.items() if name.startswith(start)}
    if not found:
        known = {name.rpartition(".")[0] for name in flat}
        known |= {".".join(name.split(".")[:n]) for name in flat for n in (1, 2) if name.count(".") >= n}
        raise UsageError(
            f"{parameter('weights_key', key)}: {str(path)!r} has no tensors under it; {nearest(key, known - {''})}"
        )
    return found


def _choose(fitting: list[Place], path: Path) -> tuple[Place, list[Fact]]:
    """The one place that is meant, and a fact where another would fit as well."""
    first = fitting[0]
    different = [place for place in fitting if not _alike(place, first)]
    if not different:
        return first, []
    direct = [place for place in fitting if all(other.prefix.startswith(place.prefix) for other in fitting)]
    trained = [place for place in fitting if not averaged(place.prefix)]
    if direct:
        chosen = direct[0]
    elif trained and all(_alike(place, trained[0]) for place in trained):
        chosen = trained[0]
    else:
        keys = [place.prefix.rstrip(".") for place in fitting]
        raise UsageError(
            f"weights file {str(path)!r} holds {len(keys)} sets of weights that fit the model: {few(map(repr, keys))}; "
            f"choose one with {parameter('weights_key', keys[0])}"
        )
    others = [place.prefix.rstrip(".") for place in fitting if not _alike(place, chosen)]
    return chosen, [Fact(FactKind.FILE_ALSO_FITS, {"file": path.name, "names": others})]


def _alike(one: Place, other: Place) -> bool:
    return one.given.keys() == other.given.keys() and all(same(v, other.given[k]) for k, v in one.given.items())


def _check(given: Mapping[str, torch.Tensor], names: Names, path: Path) -> None:
    """Raise where a tensor cannot become the model's without losing what it says, or is not finite."""
    holder = f"weights file {str(path)!r}"
    for own, tensor in given.items():
        wanted = names.tensors[own]
        if tensor.is_quantized or (wanted.is_floating_point() and not tensor.is_floating_point()):
            kind = "complex" if tensor.is_complex() else "quantised or whole"
            form = "complex parameters" if tensor.is_complex() else "floating-point weights"
            raise ModelError(
                f"{holder} holds {kind} numbers ({_kind(tensor)}) in {own!r}, where the model has {_kind(wanted)}; "
                f"{'build the model with' if tensor.is_complex() else 'save'} {form}"
            )
        if tensor.is_complex() and not wanted.is_complex():
            raise ModelError(f"{holder} holds {_kind(tensor)} in {own!r}, where the model has {_kind(wanted)}")
        whole = not (wanted.is_floating_point() or wanted.is_complex())
        if whole and not torch.equal(tensor.to(wanted.dtype).to(tensor.dtype), tensor):
            raise ModelError(
                f"{holder} holds {_kind(tensor)} in {own!r}, which the model's {_kind(wanted)} cannot represent; "
                "is it the right model?"
            )
    check_finite(given.items(), holder)
    for own, tensor in given.items():
        wanted = names.tensors[own]
        if wanted.is_floating_point() and not bool(torch.isfinite(tensor.to(wanted.dtype)).all()):
            raise ModelError(
                f"{holder} holds values in {own!r} that are beyond the range of the model's {_kind(wanted)} "
                f"(largest {float(tensor.double().abs().max()):.3g}); build the model in {_kind(tensor)}"
            )
    for group in {tuple(group) for group in names.ties.values()}:
        held = [name for name in group if name in given]
        odd = next((name for name in held[1:] if not same(given[name], given[held[0]])), None)
        if odd is not None:
            raise MisfitError(
                f"{holder} holds different tensors for {held[0]!r} and {odd!r}, which are one tensor in the model; "
                "build the model without tying them"
            )


def _put(model: nn.Module, given: Mapping[str, torch.Tensor], names: Names) -> list[Fact]:
    model.load_state_dict({names.actual[own]: tensor for own, tensor in given.items()}, strict=False)
    wider = {
        (_kind(tensor), _kind(names.tensors[own]))
        for own, tensor in given.items()
        if tensor.is_floating_point() and tensor.dtype.itemsize > names.tensors[own].dtype.itemsize
    }
    return [Fact(FactKind.FILE_ROUNDED, {"given": given, "own": own}) for given, own in sorted(wider)]


Done = tuple[Mapping[str, torch.Tensor], tuple[str, ...], str, list[Fact]]


def _through_torch(
    model: nn.Module, flat: Mapping[str, torch.Tensor], places: list[Place], names: Names, path: Path
) -> Done | None:
    """Modules may rename what they load themselves (hooks of torch's own loading): ask them, place by place."""
    for place in places:
        inside = {n.removeprefix(place.prefix): t for n, t in flat.items() if n.startswith(place.prefix)}
        before = {k: v.detach().clone() for k, v in names.tensors.items() if not nn.parameter.is_lazy(v)}
        _check({k: v for k, v in inside.items() if k in before}, names, path)
        try:
            found = model.load_state_dict(dict(inside), strict=False)
        except RuntimeError:
            found = None
        if found is not None:
            unknown = set(found.unexpected_keys)
            missing = [k for k in found.missing_keys if not is_counter(k)]
            known = {v: k for k, v in names.actual.items()}
            missing = [
                k for k in missing
                if not any(tie in inside for tie in names.ties.get(known.get(k, k), ()))
            ]  # fmt: skip
            renamed = {k: v for k, v in inside.items() if k not in names.tensors and k not in unknown}
            strange = [k for k in unknown if not is_counter(k) and not names.is_new(k, inside)]
            if not missing and not strange and all(v.is_floating_point() for v in renamed.values()):
                check_finite(renamed.items(), f"weights file {str(path)!r}")
                beside = (
                    *(place.prefix + k for k in sorted(unknown)),
                    *(n for n in flat if not n.startswith(place.prefix)),
                )
                return {k: v for k, v in inside.items() if k not in unknown}, beside, place.prefix.rstrip("."), []
        with torch.no_grad():
            for k, v in before.items():
                names.tensors[k].copy_(v)
    return None


def _translated(
    model: nn.Module,
    flat: Mapping[str, torch.Tensor],
    places: list[Place],
    names: Names,
    path: Path,
    translate: Translation | None,
    failures: list[str],
) -> Done | None:
    """Names of another code base, through the model's own translation; ``failures`` takes what that raises."""
    if translate is None:
        return None
    for place in places:
        inside = {n.removeprefix(place.prefix): t for n, t in flat.items() if n.startswith(place.prefix)}
        try:
            with torch.no_grad():
                made = {k: v for k, v in translate(dict(inside), model).items() if isinstance(v, torch.Tensor)}
        except Exception as error:  # it was written for other files than this one, and may raise anything
            failures.append(f"{_called(translate)} cannot translate it ({type_and_line(error)})")
            continue
        fit = next((p for p in places_of(made, names) if p.fits and not p.prefix), None)
        if fit is None:
            continue
        _check(fit.given, names, path)
        facts = [Fact(FactKind.FILE_TRANSLATED, {"file": path.name, "by": _called(translate)})]
        sizes = [k for k, v in made.items() if k in inside and inside[k].numel() != v.numel() and not _held(v, inside)]
        if sizes:
            facts.append(Fact(FactKind.FILE_RESAMPLED, {"file": path.name, "names": sizes}))
        facts += _put(model, fit.given, names)
        beside = (*fit.beside, *(n for n in flat if not n.startswith(place.prefix)))
        return fit.given, beside, place.prefix.rstrip("."), facts
    return None


def _held(tensor: torch.Tensor, inside: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file has the tensor itself, under another name or in another shape."""
    return any(
        v.numel() == tensor.numel() and v.dtype == tensor.dtype and torch.equal(v.flatten(), tensor.flatten())
        for v in inside.values()
    )


def _misfit(path: Path, place: Place, flat: Mapping[str, torch.Tensor], names: Names, key: str | None) -> str:
    parts = []
    own, given = names.tensors, place.given
    if place.misshapen:
        shapes = [
            f"{k} is {tuple(given[k].shape)} in the file, {tuple(own[k].shape)} in the model" for k in place.misshapen
        ]
        parts.append(f"{len(place.misshapen)} of another shape: {few(shapes)}")
    if place.missing:
        parts.append(f"{len(place.missing)} missing from the file: {few(place.missing)}")
    strange = place.strange or (place.beside if place.missing else ())
    if strange:
        parts.append(f"{len(strange)} unknown to the model: {few(strange)}")
    remedy = "is it the right model?"
    sizes = {given[k].shape[0] for k in place.misshapen if given[k].ndim}
    if place.misshapen and not place.missing and not place.strange and len(sizes) == 1 and len(place.misshapen) <= 2:
        remedy = f"for another number of classes give {parameter('num_classes', sizes.pop())}"
    without_head = place.missing and not place.misshapen and not strange
    last = next(reversed(own)).rpartition(".")[0]
    if without_head and set(place.missing) == {k for k in own if k.rpartition(".")[0] == last}:
        remedy = f"for a backbone without {last!r} give {parameter('num_classes', 0)}"
    where = f" under {place.prefix.rstrip('.')!r}" if place.prefix else ""
    groups = sorted({name.partition(".")[0] for name in flat if "." in name})
    if not given and key is None and len(groups) > 1:
        remedy = (
            f"it holds {few(map(repr, groups))}: {parameter('weights_key', groups[0])} looks in one of them; {remedy}"
        )
    return f"weights file {str(path)!r} does not fit the model{where}: {'; '.join(parts)}; {remedy}"


def _called(translate: Any) -> str:
    return f"{translate.__module__}.{translate.__name__}"


def _kind(tensor: torch.Tensor) -> str:
    return dtype_name(tensor.dtype)
