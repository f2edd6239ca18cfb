"""Whether a pass computes anything of several samples together: followed through every operator, whatever the values.

A look at values sees samples that change each other only where they do so at these values. A sum over the batch that
is compared with a threshold shows nothing until samples cross it. So each number of the pass is followed to the samples
that it comes of, by the operators that made it (``origin_rules``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankscope.slicing.operands import written_into
from rankscope.slicing.origin_call import Called
from rankscope.slicing.origin_rules import rule_of
from rankscope.slicing.origins import MIXED, NONE, codes_of_rows
from rankscope.slicing.value_reads import decides

__all__ = ["Mixing", "mixing_of"]

_LEAVES = frozenset({"numpy", "__array__", "tolist", "__dlpack__", "map_"})
_OFTEN = 256  # operators between looks at which memory is no longer used


@dataclass(frozen=True)
class Mixing:
    """What was found of a pass.

    ``mixes``: an output has a number of several samples, or of another sample than its row's, or of what nobody knows.
    ``reads``: a value of a sample decides what the pass computes.
    ``undecided`` names the first operator that is not known to leave samples apart, where there is one.
    ``numbers`` are the operators that were given plain numbers, with these: they are those of a sample alone, unless
    what a sample gives depends on how many share its pass.
    """

    mixes: bool
    reads: bool
    undecided: str | None
    numbers: frozenset[Any]


@dataclass
class _Stored:
    """The codes of a storage's numbers, and how many bytes one takes."""

    storage: StorageWeakRef
    codes: Tensor
    item: int


class _Origins(TorchDispatchMode):
    """Codes by storage, so that every view of a tensor, and what writes into one, finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = False
        self.undecided: str | None = None
        self.numbers: set[Any] = set()
        self._stored: dict[int, _Stored] = {}
        self._steps = 0

    def known(self, tensor: Tensor) -> Tensor | None:
        """The codes of a tensor; ``None`` where none of its storage comes of a sample."""
        if tensor.layout != torch.strided or tensor.is_nested:
            return None
        found = self._stored.get(tensor.untyped_storage()._cdata)
        if found is None or found.storage.expired():
            return None
        size, item = tensor.untyped_storage().nbytes() // tensor.element_size(), tensor.element_size()
        if item < found.item:  # real and imaginary parts
            found.codes, found.item = found.codes.repeat_interleave(found.item // item), item
        codes = found.codes
        if item > found.item:
            groups = codes.reshape(-1, item // found.item)
            codes = groups.amax(1).masked_fill(groups.amax(1) != groups.amin(1), MIXED)
        if len(codes) != size:  # resized since
            return codes.new_full((), MIXED).expand(tensor.shape)
        return codes.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def of(self, tensor: Tensor) -> Tensor:
        """The codes of a tensor, also of one that comes of no sample."""
        found = self.known(tensor)
        return self._dtype(tensor).expand(tensor.shape) if found is None else found

    def mark(self, tensor: Tensor, codes: Tensor) -> None:
        """A tensor that was made, or written into, has these codes from now on."""
        into = self.known(tensor)
        if into is None:
            if not bool((codes != NONE).any()):
                return
            storage, item = tensor.untyped_storage(), tensor.element_size()
            whole = codes.new_full((storage.nbytes() // item,), NONE)
            self._stored[storage._cdata] = _Stored(StorageWeakRef(storage), whole, item)
            into = self.known(tensor)
        assert into is not None
        into.copy_(codes.expand(tensor.shape))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(self.known(t) is not None for t in given):
            made = func(*args, **kwargs)
            self._count(func, args, kwargs)
            return made
        if decides(func, given):
            owned = [t for t in given if bool((self.of(t) != NONE).any())]
            self.reads |= bool(owned) and decides(func, owned)
        if rule is None:
            with self:
                made = func.decompose(*args, **kwargs)
                if made is NotImplemented and func in decomposition_table and _is_new(func):
                    made = decomposition_table[func](*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        self._follow(func, rule, _bound(func, args, kwargs), made, given)
        self._count(func, args, kwargs)
        return made

    def _follow(self, func: Any, rule: Any, bound: dict[str, Any], made: Any, given: list[Tensor]) -> None:
        held = {t.untyped_storage()._cdata for t in given if t.layout == torch.strided}
        results = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        written = written_into(func, (), bound)
        fresh = [t for t in results if t.layout != torch.strided or t.untyped_storage()._cdata not in held]
        targets = [*fresh, *written]
        if not targets or torch.Tag.inplace_view in func.tags:  # views, and those that become one
            return
        unknown = rule is None or any(t.layout != torch.strided or t.is_nested for t in [*given, *targets])
        if not unknown:
            try:
                codes = rule(Called(func, bound, targets, self.of))
                codes = [codes] * len(targets) if isinstance(codes, Tensor) else list(codes)
                for target, code in zip(targets, codes, strict=True):
                    self.mark(target, code)
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError, StopIteration, NotImplementedError):
                unknown = True
        if unknown:
            self.undecided = self.undecided or str(func._schema.name)
            for target in targets:
                if target.layout == torch.strided and not target.is_nested:
                    self.mark(target, self._dtype(target).fill_(MIXED))
        self._steps += 1
        if self._steps % _OFTEN == 0:
            self._stored = {key: one for key, one in self._stored.items() if not one.storage.expired()}

    def _count(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keep the numbers that values are computed with; sizes and places belong to the shapes."""
        name = func._schema.name.partition("::")[2]
        if name in ("lift_fresh", "_to_copy") and args[0].numel() == 1 and self.known(args[0]) is None:
            self.numbers.add((name, args[0].detach().cpu().item()))
        elif (torch.Tag.pointwise in func.tags and name != "clone") or name in ("full", "scalar_tensor"):
            given = tree_leaves((args[1:] if name == "full" else args, kwargs))
            self.numbers.add((name, *(v for v in given if isinstance(v, int | float) and not isinstance(v, bool))))

    def _dtype(self, tensor: Tensor) -> Tensor:
        first = next(iter(self._stored.values()), None)
        dtype = torch.int8 if first is None else first.codes.dtype
        return torch.full((), NONE, dtype=dtype, device=tensor.device)


class _Leaves(TorchFunctionMode):
    """Sees where a tensor of a sample becomes what torch does not follow, as an array of NumPy does."""

    def __init__(self, origins: _Origins) -> None:
        super().__init__()
        self.origins = origins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVES and args and isinstance(args[0], Tensor) and self.origins.known(args[0]) is not None:
            self.origins.undecided = self.origins.undecided or name
            self.left = True
        return func(*args, **(kwargs or {}))

    left = False


def mixing_of(given: Iterable[Tensor], count: int, run: Callable[[], Mapping[str, Tensor]]) -> Mixing:
    """Follow a pass of ``count`` samples, ``given`` being the tensors that it starts from, by rows of the samples.

    ``run`` gives the outputs, rows by samples in order.
    """
    origins = _Origins()
    leaves = _Leaves(origins)
    for tensor in given:
        origins.mark(tensor, codes_of_rows(tensor, count))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(origins)
        stack.enter_context(leaves)
        made = run()
    mixes = leaves.left
    for rows in made.values():
        if not rows.ndim or not len(rows) or len(rows) % count:
            continue
        codes = origins.of(rows).reshape(count, -1)
        own = torch.arange(count, device=codes.device)[:, None]
        mixes |= bool(((codes != own) & (codes != NONE)).any())
        parts = rows.reshape(count, -1)
        if bool((codes == NONE).all()) and not torch.equal(parts, parts[:1].expand_as(parts)):
            mixes, origins.undecided = True, origins.undecided or "code that torch does not see"
    return Mixing(mixes, origins.reads, origins.undecided, frozenset(origins.numbers))


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, with the defaults of those that were not given."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args) and not argument.kwarg_only:
            found[argument.name] = args[place]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def _is_new(func: Any) -> bool:
    """Whether by its schema the operator writes into nothing and gives no view."""
    return all(part.alias_info is None for part in (*func._schema.arguments, *func._schema.returns))
