"""What the names and the rows of a model's inputs mean: by convention, and by what the caller says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from rankscope._base.errors import UsageError, nearest

__all__ = ["BESIDE", "LABELS", "MAIN", "NOT_BATCHED", "PREFERRED", "How", "Meaning"]

# what the differentiated input is called where several could be it
PREFERRED = (
    "inputs_embeds", "pixel_values", "input_values", "input_features", "x", "input", "inputs", "image", "images",
)  # fmt: skip
LABELS = ("label", "labels", "y", "target", "targets")
# beside the batch's own input: batch first by Hugging Face's documentation, and never what is differentiated
BESIDE = (
    "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask", "pixel_mask",
    "decoder_position_ids", "bool_masked_pos", "decoder_inputs_embeds", "head_mask",
)  # fmt: skip
NOT_BATCHED = ("head_mask",)
MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


class How(Enum):
    """What the first dimension of a content's tensors is."""

    ITEM = "one sample of a data set, without a batch dimension"
    COLLATED = "a batch that torch's own collation stacked: everything in it is per sample"
    GIVEN = "what the model is called with"


@dataclass(frozen=True)
class Meaning:
    """What the caller said about the inputs' names; ``floating`` is false where nothing is differentiated."""

    differentiate: str | None = None
    shared: tuple[str, ...] = ()
    per_sample: tuple[str, ...] = ()
    floating: bool = True

    def __post_init__(self) -> None:
        both = set(self.shared) & set(self.per_sample)
        if both:
            raise UsageError(f"{min(both)!r} is in shared and in per_sample; it can be one of them")
        if self.differentiate is not None and not isinstance(self.differentiate, str):
            raise UsageError(
                f'differentiate is {self.differentiate!r}; give the name of one input, as differentiate="x"'
            )
        if self.differentiate in self.shared:
            raise UsageError(f"differentiate={self.differentiate!r} is also in shared; its rows count the samples")

    @property
    def named(self) -> tuple[str, ...]:
        """Every name that the caller used: each of them is an argument of the model."""
        return (*((self.differentiate,) if self.differentiate else ()), *self.shared, *self.per_sample)

    def check_taken(self, takes: Callable[[str], bool], listed: str) -> None:
        """Refuse names of ``shared`` and ``per_sample`` that ``forward`` does not take: they could have no effect."""
        for option, names in {"shared": self.shared, "per_sample": self.per_sample}.items():
            for name in names:
                if not takes(name):
                    raise UsageError(f"{option} names {name!r}, which forward does not take; it takes {listed}")

    def check_names(self, known: Sequence[str]) -> None:
        """Refuse names that the inputs do not hold."""
        given = {"differentiate": (self.differentiate,) if self.differentiate else ()}
        for option, names in (given | {"shared": self.shared, "per_sample": self.per_sample}).items():
            for name in names:
                if name not in known:
                    raise UsageError(f"{option} names {name!r}, which the inputs do not hold; {nearest(name, known)}")
