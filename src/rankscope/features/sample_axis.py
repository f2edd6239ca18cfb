"""Which dimension of a module's output counts samples: torch's own sequence modules have it second.

A recurrent module returns its last states as (layers, samples, …) whatever ``batch_first`` says. Without
``batch_first`` its outputs, and everything inside a transformer of torch's own, are (steps, samples, …) too.
"""

from __future__ import annotations

from torch import Tensor, nn

from rankscope._base.errors import CutPointError
from rankscope._base.text import counted

__all__ = ["check_rows", "sample_axis"]

_TRANSFORMERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


def sample_axis(model: nn.Module, name: str, path: str | None) -> int:
    """0 or 1 for the tensor at ``path`` of what the module called ``name`` returns.

    >>> net = nn.Sequential(nn.GRU(2, 3, batch_first=True))
    >>> sample_axis(net, "0", "0"), sample_axis(net, "0", "1")
    (0, 1)
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    module = modules[name]
    first = (path or "0").partition(".")[0]
    if isinstance(module, nn.RNNBase) and type(module).forward in (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward):
        return 1 if first != "0" or not module.batch_first else 0
    if isinstance(module, nn.MultiheadAttention):  # its weights have samples first
        return 1 if first == "0" and not module.batch_first else 0
    parts = name.split(".") if name else []
    around = [modules[".".join(parts[:k])] for k in range(len(parts) + 1)]
    return 1 if any(isinstance(m, _TRANSFORMERS) and _steps_first(m) for m in around) else 0


def _steps_first(module: nn.Module) -> bool:
    return any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in module.modules())


def check_rows(name: str, output: Tensor, samples: int) -> None:
    """Refuse an output whose first dimension counts something else than the samples of the pass.

    Raises
    ------
    CutPointError
        The message has the shape.
    """
    if not output.ndim or len(output) != samples:
        shape, count = tuple(output.shape), counted(samples, "sample")
        raise CutPointError(
            f"layer {name!r} returns a tensor of shape {shape} for {count}, so its first dimension does not count "
            "them; choose another cut point"
        )
