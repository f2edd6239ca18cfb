"""The certificate's other precision: each image alone, on the linear piece that the sweep stood on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from rankscope._base.identity import identity_of
from rankscope.jacobian.out_of_range import lost_below
from rankscope.jacobian.sweep import SweepResult
from rankscope.linear.graphs import Replayed
from rankscope.linear.kinks import SamePiece
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.methods import METHODS
from rankscope.slicing import Sample
from rankscope.slicing.apart import worst_gaps
from rankscope.spectra import scaled_norms

__all__ = ["BLURRED", "Certified", "Reference"]

# of J·g: a shorter precision that differs by more has lost its digits, and its error shows no more how fast they go
BLURRED = 2.0**-3


@dataclass
class Certified:
    """What the probes found of one batch.

    ``lengths`` are ‖E·g‖ by cut point, probe and image, E being the sweep's error; ``flips`` the units that were moved
    across their kink, by image. ``apart`` is the largest relative difference between the batch and the images alone,
    of outputs, inputs of piecewise linear functions and tangents; 0 for one image. ``strayed`` is the largest relative
    difference between what was swept and the model's own pass of the image: of the probes' tangents, and of the outputs
    of a traced network; it stays on the device, which is not waited for here. ``tangent`` is the first probe as a
    direction of the input. ``small`` and ``large`` say by cut point whether the working precision's range is too small
    for J·g on some image, ``blurred`` that a shorter precision has hardly a digit of it there.
    """

    lengths: Tensor
    flips: Tensor
    tangent: Tensor
    small: Tensor
    large: Tensor
    blurred: Tensor
    strayed: Tensor
    apart: float = 0.0


@dataclass
class _Found:
    """What the images from ``start`` on gave, each alone: everything has a first dimension that counts them."""

    start: int
    products: tuple[Tensor, ...]
    flips: Tensor
    outputs: tuple[Tensor, ...]
    off: Tensor


class Reference:
    """Each image alone in the other precision, on the linear piece that the working precision is on.

    Images that shared a sweep may share these passes through ``vmap``: the model still sees one image, and nothing that
    it computes can reach another's. What does not run so (a branch on a value) runs one image at a time.
    ``abreast`` is how many of them there is room for.
    """

    def __init__(
        self,
        work: LinearMap,
        exact: LinearMap,
        *,
        replay: bool,
    ) -> None:
        self.work, self.exact = work, exact
        self.abreast = 1
        self._sample: Sample | None = None
        self._alone = Replayed(self._compute, enabled=replay, beside=True)
        self._ahead: tuple[Tensor, Callable[[], Any]] | None = None
        self._lanes = not replay and exact.method.push is METHODS[0].push

    def _compute(self, x: Tensor, exact_x: Tensor, tangents: Tensor, *recorded: Tensor) -> tuple[Any, ...]:
        """One image: J₆₄·g of every cut point, flips, its outputs, and how far it was from the batch's piece."""
        assert self._sample is not None
        piece = SamePiece()
        given = self._sample
        one = Sample(exact_x, given.name, given.keyword, given.to(self.exact.device, self.exact.dtype).extra)
        piece.inputs = list(recorded)
        with piece.following() if recorded else piece.recording():
            outputs = self.work.at(replace(given, x=x)).outputs()
        products = self.exact.at(one).on_piece(piece).push(tangents)
        flips = piece.flips if piece.flips is not None else torch.zeros(1, dtype=torch.long, device=x.device)
        return products, flips, outputs, piece.apart if piece.apart is not None else x.new_zeros(())

    def start(self, sample: Sample, tangents: Tensor) -> None:
        """Begin with an image whose passes are recorded: its small float64 kernels leave room for a sweep's."""
        if not self._alone.enabled:
            return
        self._sample, self._ahead = sample, None
        if len(sample.x) > 1:
            return
        x = sample.x
        given = x, x.to(self.exact.dtype), tangents.to(self.exact.dtype)
        finished = self._alone.ahead(self._key(sample), given)
        if finished is not None:
            self._ahead = x, finished

    def _key(self, sample: Sample) -> Any:
        """A recorded pass holds whatever else the call takes as constants."""
        return identity_of(dict(sample.extra)).key if self._alone.enabled else ()

    def certify(
        self,
        sample: Sample,
        tangents: Tensor,
        result: SweepResult,
        scale: float,
        traced: tuple[Tensor, ...] | None = None,
    ) -> Certified | None:
        """Bounds for every image of a batch; ``None`` where the images alone do not run as they do together.

        Rows that the sweep dropped count with their reference value, so a bound from these covers dropping them too.
        ``scale`` says by how much the working precision errs less than the difference of the two precisions. ``traced``
        are the outputs of a traced network that stood for the model in the sweep.
        """
        self._sample = sample
        images = len(sample.x)
        batch: tuple[Tensor, ...] = ()
        recorded: list[tuple[Tensor, bool]] = []
        if images > 1:
            batch, pieces = self._together(sample)
            if pieces is None:
                return None
            recorded = pieces
        lengths, flips = [], []
        apart, strayed = [], []
        small, large, blurred = [], [], []
        for part in self._each(sample, tangents.to(self.exact.dtype), recorded):
            here = slice(part.start, part.start + len(part.flips))
            found, tops = self._errors(part, result)
            top = tops.amax(1)
            zero, whole_range = self._range(part, result)
            limits = torch.finfo(self.work.dtype)
            faint = top + found.amax(1) < limits.tiny / limits.eps
            small.append(((top > 0) & (zero | faint)).any(1))
            large.append((torch.isfinite(top) & ~whole_range).any(1))
            share = torch.where(top > 0, found.amax(1) / top, found.amax(1)).max().double()
            strayed.append(share)
            if traced:
                strayed.append(_gap(traced, part.outputs, images, here))
            if images > 1:
                apart += [share, part.off.max().double(), _gap(batch, part.outputs, images, here)]
            own = found
            if images > 1 and scale != 1:  # the working precision alone, and then what sharing changes
                own = self._own_errors(sample, part, tangents)
                found = scale * own + found
            else:
                found = scale * found
            faded = own.amax(1) > BLURRED * top if scale != 1 else torch.zeros_like(zero)
            found = torch.where(faded.unsqueeze(1), torch.nan, found)
            blurred.append(faded.any(1))
            lost = self._lost(sample, part, tangents, zero)
            if lost is not None:
                found = found + lost
                small[-1] |= (~(lost <= torch.finfo(torch.float64).eps * tops)).amax((1, 2))
            lengths.append(found)
            flips.append(part.flips.clone())
        return Certified(
            torch.cat(lengths, 2),
            torch.cat(flips),
            tangents[0],
            torch.stack(small).any(0),
            torch.stack(large).any(0),
            torch.stack(blurred).any(0),
            _largest(strayed),
            float(_largest(apart)) if apart else 0.0,
        )

    def _each(self, sample: Sample, tangents: Tensor, recorded: list[tuple[Tensor, bool]]) -> Iterator[_Found]:
        """Every image, several abreast where that runs. What is yielded is overwritten by the next."""
        images = len(sample.x)
        start = 0
        while self._lanes and min(self.abreast, images) > 1 and start < images:
            stop = min(start + self.abreast, images)
            x = sample.x[start:stop, None].clone()
            pieces = [whole[start:stop] if of_images else whole for whole, of_images in recorded]
            dims = (0, 0, None, *(0 if of_images else None for _, of_images in recorded))
            try:
                run = vmap(self._compute, in_dims=dims, randomness="same")
                products, flips, outputs, off = run(x, x.to(self.exact.dtype), tangents, *pieces)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # the model's own code may raise anything here; each image alone decides
                self._lanes = False
                break
            yield _Found(start, products, flips[:, 0], outputs, off)
            start = stop
        key = self._key(sample)
        for image in range(start, images):
            x = sample.x if images == 1 else sample.x[image : image + 1].clone()
            pieces = [whole[image] if of_images else whole for whole, of_images in recorded]
            if self._ahead is not None and self._ahead[0] is x:
                products, flips, outputs, off = self._ahead[1]()
            else:
                products, flips, outputs, off = self._alone(key, (x, x.to(self.exact.dtype), tangents, *pieces))
            self._ahead = None
            yield _Found(image, tuple(p[None] for p in products), flips, tuple(o[None] for o in outputs), off[None])

    def _together(self, sample: Sample) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, bool]] | None]:
        """The batch's outputs and its piece by image."""
        whole, first = SamePiece(), SamePiece()
        with whole.recording():
            outputs = self.work.at(sample).outputs()
        with first.recording():
            self.work.at(replace(sample, x=sample.x[:1])).outputs()
        return outputs, whole.by_image(len(sample.x), [t.shape for t in first.inputs])

    def _own_errors(self, sample: Sample, part: _Found, tangents: Tensor) -> Tensor:
        """‖(J₃₂ − J₆₄)·g‖ of each image alone, by cut point, probe and image."""
        found = []
        for place in range(len(part.flips)):
            image = part.start + place
            x = sample.x[image : image + 1].clone()
            own = self.work.at(replace(sample, x=x)).push(tangents.to(self.work.dtype))
            pairs = zip(part.products, own, strict=True)
            found.append(scaled_norms([p[place].double() - q.double() for p, q in pairs]))
        return torch.stack(found, 2)

    def _lost(self, sample: Sample, part: _Found, tangents: Tensor, zero: Tensor) -> Tensor | None:
        """What float64 loses below its range, by cut point, probe and image; ``None`` where that is nothing.

        A sweep in float32 has lost it too, and all of it: only where that is ``zero`` is there anything to ask.
        """
        down = self.work.dtype == torch.float64
        if not down and not bool(zero.any()):
            return None
        found = []
        for place in range(len(part.flips)):
            if not down and not bool(zero[:, place].any()):
                found.append(torch.zeros(len(zero), len(tangents), dtype=torch.float64, device=zero.device))
                continue
            image = part.start + place
            x = sample.x if len(sample.x) == 1 else sample.x[image : image + 1].clone()
            own = self.work.at(replace(sample, x=x))
            if not down:
                piece = SamePiece()
                with piece.recording():
                    own.outputs()
                own = self.exact.at(replace(sample.to(self.exact.device, self.exact.dtype), x=x.to(self.exact.dtype)))
                own = own.on_piece(piece)
            found.append(lost_below(own, tangents.to(own.dtype)))
        lost = torch.stack(found, 2)
        return lost if bool(lost.any()) else None

    @staticmethod
    def _range(part: _Found, result: SweepResult) -> tuple[Tensor, Tensor]:
        """Whether the swept J·g is all zero, and whether all of it is finite, by cut point and image."""
        tops = []
        for k, products in enumerate(result.products):
            start = sum(result.kept[k][: part.start])
            kept = result.kept[k][part.start : part.start + len(part.flips)]
            found = products[:, start : start + sum(kept)].split(kept, 1)
            tops.append(torch.stack([p.abs().amax() if p.numel() else p.new_zeros(()) for p in found]))
        top = torch.stack(tops)
        return top == 0, torch.isfinite(top)

    @staticmethod
    def _errors(part: _Found, result: SweepResult) -> tuple[Tensor, Tensor]:
        """‖(J − J₆₄)·g‖ and ‖J₆₄·g‖, by cut point, probe and image."""
        count = len(part.flips)
        differences = [p.transpose(0, 1).to(torch.float64, copy=True).contiguous() for p in part.products]
        tops = scaled_norms(differences)
        for k, difference in enumerate(differences):
            rows = result.rows[k]
            start = sum(result.kept[k][: part.start])
            stop = start + sum(result.kept[k][part.start : part.start + count])
            places = result.support[k][start:stop] - part.start * rows
            difference.view(len(difference), -1)[:, places] -= result.products[k][:, start:stop]
        return scaled_norms(differences), tops


def _gap(whole: Sequence[Tensor], alone: Sequence[Tensor], images: int, here: slice) -> Tensor:
    """How far some images of a batch are from what they give alone, at the worst cut point."""
    return worst_gaps([w.view(images, -1)[here] for w in whole], alone, here.stop - here.start)


def _largest(gaps: list[Tensor]) -> Tensor:
    """The largest of all, where NaN is larger than any number."""
    far = torch.stack(gaps)
    return torch.where(far.isnan(), torch.full_like(far, torch.inf), far).max()
