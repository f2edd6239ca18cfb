"""Measure a model without leaving a trace: everything that a measurement changes is put back, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from rankscope._base.errors import ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.turns import one_at_a_time
from rankscope.slicing.grad_mode import plain_modes
from rankscope.slicing.plain_kernels import plain_kernels
from rankscope.slicing.state import kept_state
from rankscope.slicing.wrapped import called_directly

__all__ = [
    "evaluation_mode",
    "full_precision",
    "measuring",
    "mode_facts",
    "no_script",
    "observing",
    "random_state",
    "weights_with_numbers",
]


def mode_facts(model: nn.Module) -> list[Fact]:
    """What a result says of a model that was not in evaluation mode when it was given.

    Raises
    ------
    ModelError
        For a TorchScript module, which may have no mode at all.
    """
    no_script(model)
    training = any(module.training for module in model.modules())
    return [Fact(FactKind.TRAINING_MODE)] if training else []


def no_script(model: nn.Module) -> None:
    """Scripted modules take no hooks, and their weights and buffers cannot be put in place from outside."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {name!r}" if name else "the model"
            raise ModelError(
                f"{what} is a TorchScript module, which takes no hooks and so cannot be measured; put in its place "
                "the module that it was scripted or traced from"
            )


def weights_with_numbers(model: nn.Module) -> None:
    """Weights on the meta device are the form of a network."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(f"the weights of {name!r} are on the meta device and hold no numbers; load weights")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is put back afterwards."""
    no_script(model)
    with one_at_a_time():
        modes = {module: module.training for module in model.modules()}
        try:
            try:
                model.eval()
            except NotImplementedError:  # a program that torch.export made has the mode that it was exported in
                for module in modes:
                    module.training = False
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _precision_settings() -> list[Any]:
    backends: Any = torch.backends
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]


def _legacy(read: Callable[[], Any]) -> Any:
    """An older flag, or ``None`` where the caller mixed both interfaces and torch refuses to read it."""
    try:
        return read()
    except RuntimeError:
        return None


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 arithmetic in full inside: rounding to TF32 turned an exact rank of 300 into 765 (measured).

    torch has two interfaces to these flags and its kernels refuse to run where they disagree, so both are set, and both
    are put back.
    """
    settings = _precision_settings()
    before = [setting.fp32_precision for setting in settings]
    matmul = _legacy(torch.get_float32_matmul_precision)
    cudnn = _legacy(lambda: torch.backends.cudnn.allow_tf32)
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _fast_path_off() -> Iterator[None]:
    """``nn.MultiheadAttention``'s fast path has no forward-mode formula, and it skips hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def observing(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The guards of forward passes: full float32, hooks not skipped, random state, state. Modes are the caller's.

    Each call of the model inside starts from the state that the model had outside: buffers, counters, caches.
    """
    no_script(model)
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        if device.type == "cuda":  # events and recorded graphs belong to the current GPU, whichever the model is on
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(called_directly(model))  # before the state is kept, in which it then belongs
        stack.enter_context(kept_state(model))
        stack.enter_context(random_state(device))
        stack.enter_context(full_precision())
        stack.enter_context(_fast_path_off())
        stack.enter_context(torch.no_grad())
        yield


_QUIET: list[None] = []  # one for each measurement within a measurement: the outermost turns it on again


@contextmanager
def _quiet_vmap() -> Iterator[None]:
    """torch's warning, on standard error, that an operator has no batching rule and is slower (``aten::glu_jvp``).

    No filter of Python sees it, and torch has a switch but no question for it: afterwards it is on, as torch starts.
    """
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    _QUIET.append(None)
    try:
        yield
    finally:
        _QUIET.pop()
        functorch._set_vmap_fallback_warning_enabled(not _QUIET)


@contextmanager
def measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The guards of derivatives: those of ``observing``, evaluation mode, and fused kernels by their plain formulas."""
    with (
        evaluation_mode(model),
        observing(model, device),
        plain_kernels(),
        torch.inference_mode(False),  # some versions drop every tangent inside it, without a word
        plain_modes(),
        _quiet_vmap(),
        torch.no_grad(),
    ):
        yield
