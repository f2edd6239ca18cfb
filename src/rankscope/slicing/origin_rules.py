"""What each operator of torch makes of the codes of its inputs (``origins``): exactly, or ``MIXED`` where in doubt.

A rule reads from the operator's schema alone which numbers each number of its result is computed from, never from what
the numbers are. Operators of one number of each input at a time carry torch's tag ``pointwise`` and need no rule here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope.slicing import origin_places as places
from rankscope.slicing import origin_steps as steps
from rankscope.slicing import origin_sums as sums
from rankscope.slicing.origin_call import Called, Rule
from rankscope.slicing.origins import merged

__all__ = ["rule_of"]


def _pointwise(call: Called) -> Tensor:
    every = [value for value in call.given.values() if isinstance(value, Tensor)]
    listed = [one for value in call.given.values() if isinstance(value, list | tuple) for one in value]
    return merged(*(call.codes(t) for t in [*every, *listed] if isinstance(t, Tensor)))


def _rules() -> dict[str, Rule]:
    found: dict[str, Rule] = {}

    def add(names: str, rule: Rule) -> None:
        found.update(dict.fromkeys(names.split(), rule))

    add(
        "sum mean nansum prod any all amax amin max min aminmax median nanmedian mode kthvalue argmax argmin std var",
        sums.reduced,
    )
    add("std_mean var_mean logsumexp linalg_vector_norm norm count_nonzero", sums.reduced)
    add("_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp sort topk argsort msort", sums.along)
    add("_fft_r2c _fft_c2r _fft_c2c glu _safe_softmax", sums.along)
    add("native_layer_norm _fused_rms_norm", sums.rest_unknown(sums.layer_norm))
    add("native_group_norm", sums.rest_unknown(sums.group_norm))
    add(
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit batch_norm",
        sums.rest_unknown(sums.batch_norm),
    )
    add(
        "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update",
        sums.rest_unknown(sums.batch_norm),
    )
    add("mm bmm", sums.product("self", "mat2"))
    add("mv", sums.product("self", "vec"))
    add("dot vdot", sums.product("self", "tensor"))
    add("addmm", sums.product("mat1", "mat2", "self"))
    add("baddbmm", sums.product("batch1", "batch2", "self"))
    add("addmv", sums.product("mat", "vec", "self"))
    add("_cdist_forward", sums.distances)
    add("_trilinear", sums.trilinear)
    add("histc", sums.counted)
    add("convolution _convolution convolution_overrideable mkldnn_convolution", sums.convolution)
    add("cudnn_convolution cudnn_convolution_relu cudnn_convolution_transpose", sums.convolution)
    add("miopen_convolution miopen_convolution_relu miopen_convolution_transpose", sums.convolution)
    add("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention", sums.attention)
    add("_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention", sums.attention)
    add("_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable", sums.attention)
    add("mkldnn_rnn_layer", steps.recurrent)
    add("_cudnn_rnn miopen_rnn", steps.cudnn_recurrent)
    add("_thnn_fused_lstm_cell _thnn_fused_gru_cell", steps.fused_cell)
    add("_pack_padded_sequence", steps.packed)
    add("_pad_packed_sequence", steps.unpacked)
    add("embedding", places.embedding)
    add("gather index_select", places.gather)
    add("scatter scatter_add scatter_reduce index_add index_copy index_fill", places.scattered)
    add("index", places.indexed)
    add("index_put _index_put_impl _unsafe_index_put", places.put)
    add("_unsafe_index", places.indexed)
    add("cat stack roll flip repeat _unsafe_view clone diag_embed rot90 channel_shuffle unsafe_split", places.moved)
    add("unsafe_split_with_sizes split_with_sizes_copy unbind_copy pixel_shuffle pixel_unshuffle", places.moved)
    add("constant_pad_nd", places.padded)
    add("copy _to_copy lift_fresh lift_fresh_copy tril triu", places.copied)
    add("fill zero", places.filled)
    add("zeros_like ones_like full_like empty_like rand_like randn_like randint_like bernoulli", places.like)
    add("new_zeros new_ones new_full new_empty new_empty_strided", places.like)
    add("linalg_inv_ex linalg_cholesky_ex _linalg_det _linalg_slogdet _linalg_svd _linalg_eigh", sums.matrices)
    add("linalg_qr linalg_matrix_exp", sums.matrices)
    # without torch's tag in some versions
    add("hardswish gelu mish threshold _prelu_kernel log_sigmoid_forward masked_fill complex polar", _pointwise)
    add("native_dropout", _pointwise)
    add("im2col col2im", sums.unfolded)
    add("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler", sums.grid_sampled)
    add("max_pool1d avg_pool1d reflection_pad1d replication_pad1d adaptive_max_pool1d", sums.last(1))
    add(
        "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d mkldnn_max_pool2d",
        sums.last(2),
    )
    add("reflection_pad2d replication_pad2d", sums.last(2))
    add("max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d", sums.last(3))
    add("reflection_pad3d replication_pad3d", sums.last(3))
    add("upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d", sums.last())
    add("_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d", sums.last())
    add("upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", sums.last())
    return found


_RULES = _rules()


def rule_of(func: Any) -> Rule | None:
    """The rule of an operator; ``None`` where there is none."""
    if func.namespace != "aten":
        return None
    name = func._schema.name.partition("::")[2]
    name = name[:-1] if func._schema.is_mutable and name.endswith("_") else name
    by_number = torch.Tag.pointwise in func.tags or (func._schema.is_mutable and _tagged(name))
    if by_number and name not in ("copy", "fill"):  # ``max`` of two is, ``max`` of all is not
        return _pointwise
    return _RULES.get(name)


def _tagged(name: str) -> bool:
    """Whether the operator that writes into nothing has torch's tag, which many of those that do lack."""
    plain = getattr(torch.ops.aten, name, None)
    return plain is not None and any(torch.Tag.pointwise in getattr(plain, one).tags for one in plain.overloads())
