"""Texts as samples, through a model's own tokenizer: each keeps its own length, nothing is padded or cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rankscope._base.errors import DataError, ModelError, UsageError, first_line
from rankscope.loading._hf_folder import check_files, damaged_json

__all__ = ["Texts", "load_tokenizer", "read_texts"]

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


class Texts(Dataset[dict[str, Tensor]]):
    """Tokenised texts: one mapping of the model's inputs a text. ``texts`` are as they were given."""

    def __init__(self, texts: Sequence[str], items: Sequence[dict[str, Tensor]]) -> None:
        self.texts, self.items = tuple(texts), tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


def read_texts(model: nn.Module, tokenizer: Any, texts: str | Sequence[str]) -> Texts:
    """Samples for ``jacobian_rank`` and ``layers``: what is differentiated are the embeddings of a text's tokens.

    Parameters
    ----------
    model : nn.Module
        A model of Hugging Face whose ``forward`` takes ``input_ids`` and ``inputs_embeds``.
    tokenizer : callable
        The model's own, as ``transformers.AutoTokenizer.from_pretrained`` gives it.
    texts : str or sequence of str
        Texts are not padded: each has its own number of tokens T, and T·width input coordinates.

    Raises
    ------
    UsageError
        For an encoder–decoder, which needs a second text, and for a model that takes no embeddings.
    DataError
        For no text, an empty one, one longer than the model takes, and tokens that the model does not know.

    Examples
    --------
    >>> import rankscope as rs
    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()
    >>> words = lambda text: {"input_ids": [len(word) for word in text.split()]}
    >>> profile = rs.jacobian_rank(model, read_texts(model, words, ["a text", "one more text"]))
    >>> profile.columns.counts
    (16, 24)
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise DataError("there is no text; give one or more")
    config: Any = getattr(model, "config", None)
    name = type(model).__name__
    if config is None or not callable(getattr(model, "get_input_embeddings", None)):
        raise UsageError(f"{name} is no model of Hugging Face with token embeddings; give its inputs as tensors")
    # a classifier of this kind gives its decoder the text itself, shifted by one token
    if getattr(config, "is_encoder_decoder", False) and not hasattr(model, "classification_head"):
        raise UsageError(
            f"{name} is an encoder–decoder, which needs a second text; give a mapping with input_ids and "
            "decoder_input_ids"
        )
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    known = getattr(table, "num_embeddings", None)
    if known is None:
        raise UsageError(f"{name} has no table of token embeddings; give its inputs as tensors")
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return Texts(listed, [_item(text, f"text {i}", tokenizer, known, longest) for i, text in enumerate(listed)])


def _item(text: Any, name: str, tokenizer: Any, known: int, longest: int | None) -> dict[str, Tensor]:
    if not isinstance(text, str):
        raise DataError(f"{name} is a {type(text).__name__}; give a str")
    if not text.strip():
        raise DataError(f"{name} is empty; leave it out")
    found = {key: torch.as_tensor(value) for key, value in dict(tokenizer(text)).items()}
    ids = found.get("input_ids")
    if ids is None or ids.ndim != 1 or not len(ids):
        raise DataError(f"{name} ({text[:40]!r}) has no tokens; give another text")
    if longest is not None and len(ids) > longest:
        raise DataError(f"{name} has {len(ids):,} tokens, and the model takes at most {longest:,}; shorten it")
    if int(ids.max()) >= known:
        raise DataError(
            f"{name} has the token {int(ids.max()):,}, and the model knows {known:,}; the tokenizer is another model's"
        )
    return found


def load_tokenizer(where: str) -> Any:
    """The tokenizer that lies beside a model's weights, in the same folder.

    Raises ``ModelError`` where there is none, or it cannot be read.
    """
    folder = Path(where).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        raise ModelError(f"folder {where!r} holds no tokenizer; tokenizer.save_pretrained() writes one there")
    check_files(folder)
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(where)
    except Exception as error:  # whatever a file or the hub leads to
        damaged = damaged_json(folder) if folder.is_dir() else None
        raise ModelError(
            f"the tokenizer of hf:{where} cannot be read ({damaged or first_line(error)}); "
            "tokenizer.save_pretrained() writes all of its files"
        ) from error
