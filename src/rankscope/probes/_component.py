"""One component made ready to be measured: copied, checked, and turned into a function of one sample."""

from __future__ import annotations

import copy
from collections.abc import Sized

import torch
from torch import Tensor, nn

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError, ModelError, first_line, parameter
from rankscope.slicing.precision import meant

__all__ = ["Prepared", "check_finite"]

_CHUNK = 512  # samples a forward pass
_SOME = 64  # samples that have to show whether a component is random


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values, or ``MeasurementError`` when some are NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise MeasurementError(
            f"{bad} of {values.numel()} values of {what} are NaN or infinite; check the component's weights and "
            "its running statistics"
        )
    return values


def _rows(values: Tensor) -> Tensor:
    """A matrix with a row per sample, also of one number per sample."""
    return values.reshape(len(values), -1)


def _in_dtype(module: nn.ModuleList, dtype: torch.dtype) -> nn.ModuleList:
    """The module in that precision. ``Module.to`` would drop the imaginary parts of complex weights."""
    return module._apply(lambda tensor: tensor.to(meant(tensor, dtype)))


def _uses_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


class _Dropout(nn.Module):
    """Dropout whose mask a seed decides alone: torch's own depends on the device and the dtype."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape, dtype=torch.float32) >= self.p
        return x * kept.to(x) / (1 - self.p)


def _draw_masks_on_the_cpu(module: nn.Module) -> None:
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.training and child.p < 1:
                setattr(parent, name, _Dropout(child.p))


class Prepared:
    """A copy of the user's module on the device, in evaluation mode or in the mode in which it was given.

    Running statistics of layers in training mode are not updated: the function computed in training mode does not
    depend on them, and an update in place has no meaning under ``vmap``.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        features: Tensor,
        *,
        seed: int,
        training: bool | None = None,
        given: bool = False,
    ) -> None:
        self.name, self.seed, self.given = name, seed, given
        try:
            # inside a container, so that the module itself can be replaced as its children can
            self.module = _in_dtype(nn.ModuleList([copy.deepcopy(module)]).to(features.device), features.dtype)
        except Exception as error:
            raise ModelError(
                f"{name} cannot be copied, and it must not be changed: {first_line(error)}; give a module whose "
                "parameters and buffers are leaves"
            ) from error
        if training is not None:
            self.module.train(training)
        self.input_shape = tuple(features.shape[1:])
        for part in self.module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.training:
                part.running_mean = part.running_var = part.num_batches_tracked = None
                part.track_running_stats = False
        _draw_masks_on_the_cpu(self.module)
        first = self._first(features[:2])
        self.output_shape = tuple(first.shape[1:])
        if first.shape[0] != 2:
            raise ModelError(
                f"{name} turned 2 samples into an output of shape {tuple(first.shape)}; its first dimension has to "
                "count samples"
            )
        check_finite(first, f"the output of {name}")
        scale = float(first.abs().max())
        # sums in another order differ by rounding, a random mask by far more; a rare one shows in many samples only
        some = features[:_SOME]
        once, again = self.run(some), self.run(some, seed=seed + 1)
        self.random = not torch.allclose(again, once, rtol=0.0, atol=100 * torch.finfo(first.dtype).eps * scale)
        self.coupled = any(_uses_batch_statistics(m) for m in self.module.modules())
        if not self.coupled and not self.random:
            self.coupled = not torch.allclose(self.run(features[:1]), first[:1], rtol=0.0, atol=1e-4 * scale)

    def _first(self, features: Tensor) -> Tensor:
        """The first call. Where it fails and the other precision does not, the precision is the reason."""
        try:
            return self.run(features)
        except ModelError as error:
            raised = error.__cause__
            if not isinstance(raised, Exception):  # it runs, and returns what has no rows
                raise
            dtype, other = features.dtype, torch.float32 if features.dtype == torch.float64 else torch.float64
            try:
                _in_dtype(copy.deepcopy(self.module), other)[0](features.to(other))
            except Exception:
                raise error from raised
            raise ModelError(
                f"{self.name} does not run in {dtype_name(dtype)}: {first_line(raised)}; give "
                f"{parameter('dtype', dtype_name(other))}, or keep conversions to {dtype_name(other)} and constants of "
                "it out of its forward"
            ) from error

    def run(self, features: Tensor, *, seed: int | None = None) -> Tensor:
        """The component's output for a batch, with its random mask drawn from ``seed``."""
        torch.manual_seed(self.seed if seed is None else seed)
        try:
            # + 0: an in-place component must not change the features
            output = self.module[0](features + 0)
        except Exception as error:
            raise ModelError(
                f"{self.name} failed on features of shape {self.input_shape}: {first_line(error)}; "
                + (
                    f"give {parameter('inputs')} of a shape that it takes"
                    if self.given
                    else f"give the shape of one sample that it takes as {parameter('input_shape')}"
                )
            ) from error
        if not isinstance(output, Tensor):
            kind = f"{type(output).__name__} of {len(output)}" if isinstance(output, Sized) else type(output).__name__
            raise ModelError(f"{self.name} returned a {kind}; wrap it in a module that returns one tensor")
        if not output.is_floating_point():
            raise ModelError(f"{self.name} returned {output.dtype}; an output without a derivative has no Jacobian")
        if output.ndim == 0:
            raise ModelError(f"{self.name} returned a single number for a batch; its output has to keep the samples")
        return output

    def all_outputs(self, features: Tensor) -> Tensor:
        """Outputs of the whole batch as a matrix (samples, values), batch statistics over all samples at once."""
        if self.coupled:
            return check_finite(_rows(self.run(features)), f"the output of {self.name}")
        parts = [_rows(self.run(part, seed=self.seed + i)) for i, part in enumerate(features.split(_CHUNK))]
        together = check_finite(torch.cat(parts), f"the output of {self.name}")
        if len(together) != len(features):
            raise ModelError(
                f"{self.name} turned {len(features)} samples into {len(together)}; its output's first dimension has "
                "to count samples"
            )
        return together
