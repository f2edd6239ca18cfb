"""What a traced pass called: records of its module calls and of the network's own output, to be asked for by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankscope.slicing.capture import CallKey
from rankscope.slicing.members import Path
from rankscope.slicing.mixing import Stretch

__all__ = ["ModuleCall", "Trace"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module, or one of the tensors that it returned, or the network's own output.

    ``name`` is the dotted module name, with ``#k`` (k from 1) where the module is called several times, and with the
    tensor's path (``lstm.0``) where one of several tensors is meant.
    ``node`` identifies what it returned: two calls with one ``node`` returned the very same tensors.
    ``mixing`` has one bit for every operation before its output that mixes features (matrix product, convolution, …);
    ``always`` those of them that all ways from the input to this output pass through.
    ``tensors`` are the paths of what it returned, where that was more than one tensor; ``left_out`` what else it
    returned that is not measured. ``part`` is the path of the one tensor that is meant, where there are several.
    ``complex``: its rows are real and imaginary parts.
    """

    name: str
    key: CallKey
    kind: str
    shape: tuple[int, ...]
    true_cut: bool
    depends: bool
    leaf: bool
    node: int
    mixing: int = 0
    always: int = 0
    tensors: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    part: Path = ""
    complex: bool = False

    @property
    def of_network(self) -> bool:
        """Whether it is the network's own output, or one of several outputs."""
        return self.key.of_network

    @property
    def bare(self) -> str:
        """Its name without the number of the call: that of the module, or of a tensor that the module returns."""
        return self._module + self._rest

    @property
    def numbered(self) -> str:
        """Its name with the number of the call, also where the module is called once."""
        return self.name if self.of_network else f"{self._module}#{self.key.call + 1}{self._rest}"

    @property
    def _module(self) -> str:
        return self.name if self.of_network else self.key.module

    @property
    def _rest(self) -> str:
        return self.name.removeprefix(self._module).removeprefix(f"#{self.key.call + 1}")


@dataclass(frozen=True)
class Trace:
    """All module calls of one forward pass, in the order in which the modules returned, and the network's output."""

    calls: tuple[ModuleCall, ...]
    """What ``"all"`` stands for. A module of whose several tensors only one is used further stands here as that tensor.
    The network's output stands here where no module returned the very same tensor."""

    model: str
    input_shape: tuple[int, ...]
    structured: bool
    """Whether autograd's graph was there to tell true cuts; without it ``true_cut`` is False everywhere."""

    sizes: tuple[tuple[int, int], ...] = ()
    """By bit of ``ModuleCall.mixing``: how many values enter and leave the operation."""

    nameable: tuple[ModuleCall, ...] = ()
    """Everything that can be asked for by name, in depth order: ``calls``, each tensor of several, and the output."""

    output: ModuleCall | None = None
    """All outputs of the network together."""

    through: bool = False
    """Whether the model turns gradients off inside, so that reverse mode has to leave them on to be right."""

    called: frozenset[tuple[str, int]] = frozenset()
    """Every call that was made, as (module, number of the call), also of what returned nothing that can be measured."""

    def mixes(self, calls: Sequence[ModuleCall]) -> list[Stretch]:
        """For each of some calls in depth order: what mixes features between the last true cut of them and it.

        Where no true cut is known the last call counts instead.
        """
        found, before = [], 0
        for call in calls:
            found.append(self._stretch(call.mixing & ~before, call.always))
            if call.true_cut or not self.structured:
                before = call.mixing
        return found

    def _stretch(self, between: int, always: int) -> Stretch:
        chain = self.structured and between & ~always == 0
        sizes = tuple(size for k, size in enumerate(self.sizes) if chain and between >> k & 1)
        return Stretch(between.bit_count(), sizes)

    def by_name(self, name: str) -> list[ModuleCall]:
        """Every call of one module, or the one call, tensor or output of that name.

        ``layer#1`` is the first call also where it is the only one: another sample may make more.
        """
        everything = self.nameable or self.calls
        one = [c for c in everything if c.name == name]
        return one or [c for c in everything if name in (c.numbered, c.bare)]

    def stands_for_output(self, calls: Iterable[ModuleCall]) -> ModuleCall | None:
        """Of some calls the last that returned the very tensors that the network returns."""
        if self.output is None:
            return None
        same = [c for c in calls if c.name == self.output.name or c.node == self.output.node]
        return same[-1] if same else None
