"""What was found out beside the numbers: an enumeration and values. ``views.sentences`` writes the words, once.

A new finding is one member here and one sentence there. Code asks for a kind, or for a value, never for words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rankscope._base.encoding import exact, frozen, read

__all__ = ["Fact", "FactKind", "about", "as_facts", "gist", "kept_facts", "of_kind", "unsaid"]


class FactKind(StrEnum):
    """What a fact is about. The comment behind a member names its values."""

    # any room
    NOTE = "note"  # text: what the caller gave in words of their own
    EARLIER_NOTE = "note from an earlier version"  # text
    # how tangents were pushed, and what bounds the error
    PUSHED = "tangents pushed through the model"  # name
    LINEARISED = "linearised network"  # name of the way it was compared with, difference
    KEPT_IMAGES = "read from kept images"
    WAY_FAILED = "a faster way failed"  # name, reason
    WAY_DIFFERS = "a faster way gave other derivatives"  # name, other, difference
    WAY_GIVEN_UP = "a faster way was given up on a later image"  # name, reason
    PROBES = "float64 probes"  # probes, failure (probability)
    SCALED_PROBES = "float32 probes scaled to float64"  # probes
    NARROW_PROBES = "probes of a model that casts to lower precision"  # probes
    TWO_PRECISIONS = "float32 against float64"  # probes, failure (probability)
    NOT_IN_BOTH = "not certified: does not run in both precisions"
    NOT_IN_FLOAT64 = "not certified: does not run in float64"
    IN_DOUBT = "not certified: in doubt"
    NOT_CERTIFIED = "not certified: not asked for"
    NO_COMMON_PATH = "not certified: the two precisions lead to different calls"
    # what the model was called with
    DIFFERENTIATED = "differentiated input"  # name, per_sample, shared: names of the other inputs
    NOISED = "input that noise is added to"  # name, per_sample, shared: names of the other inputs
    COUNTED = "input whose rows are the samples"  # name, per_sample, shared: names of the other inputs
    # by_batch with these three: a collate_fn made what is shared, for the samples of one batch
    INPUT_LEFT_OUT = "input left out"  # name, reason
    ONE_WORKER = "a stream was read by one worker"  # workers: how many its loader has
    SEVERAL_SIZES = "samples of several shapes"  # shapes (without the batch dimension), least, most (columns K)
    # what an earlier run of the same command kept
    READ_BACK = "read back from an earlier run"  # kept, total, unit
    CUTS_READ_BACK = "cut points read back from an earlier run"  # kept
    KEPT_DAMAGED = "kept results are damaged"  # count, unit
    KEPT_MISSING = "kept results are missing"  # names (of files), after (how many units are kept), unit
    KEPT_OTHER = "kept results of another question"  # count, unit
    KEPT_DIFFERS = "kept results differ from a new measurement"  # where, unit
    KEPT_UNCHECKED = "kept results were not measured again"  # reason
    KEPT_INCOMPARABLE = "kept results cannot be compared"  # types, owner
    # the derivative and its certificate
    REVERSE_UNCHECKED = "reverse mode unchecked"  # reason
    REVERSE_DISAGREES = "reverse mode disagrees"  # error, where
    UNDERFLOW = "products underflow"  # where, dtype
    OVERFLOW = "products overflow"  # where, dtype
    NO_ESTIMATE = "error of float64 not estimated"  # where
    SOME_DISAGREE = "reverse mode disagrees on some"  # error, where
    NO_FLOAT64 = "no float64 reference"  # reason
    OTHER_PATH = "another path in the other precision"  # dtype (the working one)
    CASTS_DOWN = "casts to lower precision"
    LEAVES_COMPUTATION = "a tensor leaves the computation"  # where, gap
    CUSTOM_BACKWARD = "a custom operator's backward is not its derivative"  # where, operator (name of the class)
    UNWRAPPED = "wrappers taken off"  # wrappers (names of their classes), from the outside in
    PASSED_THROUGH = "wrappers inside passed through"  # wrappers (names of their classes), inside (their own names)
    TRAINING_MODE = "training mode"
    KEEPS_STATE = "keeps state between calls"  # where: names of what a call changes
    RANDOM_MODEL = "random in evaluation mode"  # where
    DRAWS_UNUSED = "draws that change nothing"  # calls: how many gave the same
    FUNCTION_UNCHECKED = "derivative unchecked against the function"  # reason, where (empty: everywhere)
    WEIGHTS_RAISED = "half precision raised to float32"  # dtypes
    # copies of the weights in the certificate's dtype; bytes: of all, budget
    WEIGHTS_ON_DEMAND = "weights converted on demand"  # dtype, bytes, budget
    WEIGHTS_HELD = "converted weights held beyond the budget"  # dtype, bytes, budget, reason
    NO_GRAPH = "no autograd graph"
    # single components
    SAMPLES_COUPLED = "samples are coupled"  # context: samples of the batch around the one that moves
    RANDOM_MASKS = "random in training mode"
    # what cut points return
    SEVERAL_TENSORS = "several tensors together"  # names, tensors (paths)
    LEFT_OUT = "returned and not part of the cut point"  # names, what
    ROWS_NOT_SAMPLES = "rows are not samples"  # names, shape (of the first, for one sample or two)
    CALLED_ALONE = "each sample called alone"  # coupled; place: its place in the pass decides; undecided
    CHOSEN_LATE = "layers that are cut points of later samples alone"  # names
    NO_ROWS = "called with no row of any sample"  # names
    CALLED_ONCE = "layers that one sample alone calls"  # names
    NOT_CALLED = "not called by every sample"  # names, counts (samples that do not), total, left_out (where true)
    COMPLEX_ROWS = "real and imaginary parts as rows"  # names
    # chains of equal width
    LEADING_EXPONENTS = "leading exponents alone"  # tracked, width, seed
    SHORT_CHAIN = "rates of a finite chain"  # blocks
    # matrix-free ranks: reason is bracket, asked, limit, memory or invariant
    LANCZOS_STEPS = "Lanczos steps"  # steps, reason, bracket, asked (None: not), tolerance
    PRODUCTS_CHECKED = "products compared with float64"  # probes, failure
    PRODUCTS_UNCHECKED = "products not compared with float64"  # dtype
    # the full Jacobian: asked (auto, exact or lanczos), exact, lanczos (numbers of cut points), side (largest exact),
    # bytes: needed (for all singular values of the smallest one with probes), budget, bytes (expected); probes, steps,
    # seconds (expected)
    FULL_PLAN = "plan of a full Jacobian"
    NOT_RECORDED = "products not recorded"  # where, reason
    SMALLER_CHUNK = "smaller chunk after memory ran out"  # where, chunk (0: as before), alone
    PRODUCTS_IN_FLOAT64 = "products in float64 for a small threshold"  # tolerance
    LEADING_COUNTED = "leading singular values computed"  # count
    LEADING_NO_ROOM = "memory ran out for the leading singular values"
    NOT_FROM_MOMENTS = "not bounded by moments"  # names
    # features: measure is overall or balanced, answer a class
    AT_CHANCE = "accuracy at chance"  # accuracy, share, answer, measure, of (head or logits)
    KEPT_BY_CHANCE = "one answer for all keeps enough"  # kept, share, answer, measure
    OTHER_CLASS_NAMES = "class names of the data are not those of the model"  # data, model; unknown where not all
    OTHER_CLASS_ORDER = "class names of the data have other places in the model"  # count, name, label, place
    FULL_WIDTH_ALONE = "the threshold is reached at full width alone"
    NOT_MONOTONE = "accuracy falls below the threshold again"  # count
    FEW_DIRECTIONS = "components beyond the directions of variance"  # directions
    CONSTANT_LAYER = "layer without variance"  # name, samples
    FEW_ROWS = "dimension set by the number of rows"  # name, samples, width
    ROUNDED_LAYER = "dimension open because of the dtype"  # name, low, high
    ROUNDED_CLASSES = "class ranks open because of the dtype"  # name, dtype
    SKETCHED_LAYER = "layer sketched"  # name, width, directions; bytes: covariance, rows (None unknown), memory
    DUPLICATES_LEFT_OUT = "equal rows left out"  # name, count, total
    TIED_NEIGHBOURS = "several nearest neighbours"  # name, share (of the samples)
    BEYOND_SAMPLES = "dimension beyond what the samples fill"  # name, value, samples, most
    # a comparison of runs: labels and values have one entry per run
    RUNS_DIFFER = "runs differ in how they were measured"  # what (a setting's name), labels, values (as text)
    MATCHED_BY_DEPTH = "layers matched by depth"  # labels, first (names of the first layer)
    NOT_IN_ALL = "layers that some runs lack"  # names
    IMAGES_UNKNOWN = "images have no names of their own"
    # checkpoints of a training run
    CHECKPOINT_LEFT_OUT = "checkpoint left out"  # file, reason
    CHECKPOINTS_WITHOUT_STEP = "checkpoints without a step"  # names
    CHECKPOINT_STEPS_DIFFER = "steps of a checkpoint's file and name differ"  # file, inside, name, unit, used
    CHECKPOINTS_ALIKE = "checkpoints with the same weights"  # step, names
    CHECKPOINTS_OF_ONE_STEP = "several checkpoints of one step"  # step, names
    CHECKPOINTS_GONE = "checkpoints that are no longer there"  # names
    # how a model and its data were loaded
    RANDOM_WEIGHTS = "random weights"  # seed
    NORMS_OPENED = "norm scales set from zero to one"  # count
    WEIGHTS_DRAWN = "weights drawn in place of zeros"  # count
    BRANCHES_CLOSED = "gains at zero"  # count
    BRANCHES_NEARLY_CLOSED = "layer scales near zero"  # count, largest
    FACTORY_BUILT = "built by a factory under a seed"  # factory, seed
    TAKEN_AS = "name taken as another"  # given, taken
    LAZY_SIZED = "lazy layers sized"  # shape
    FRESH_PARAMETERS = "parameters that the weights lack"  # count, names
    FILE_ALSO_FITS = "another part of the file fits"  # file, names
    FILE_LEFT_OVER = "tensors of the file not used"  # file, names
    FILE_TRANSLATED = "names of the file translated"  # file, by
    FILE_RESAMPLED = "tensors of the file resampled"  # file, names
    FILE_ROUNDED = "tensors of the file rounded"  # file dtype, model dtype: given, own
    BATCHNORM_SET = "BatchNorm statistics set"  # layers, unused, images, source ("data", "noise": too few images)
    EXAMPLE_INPUT = "measured on one example input"  # shape
    PLAIN_PREPROCESSING = "preprocessing of the model unknown"  # size (C, H, W)
    IMAGES = "images"  # source, preprocessing
    FOLDER_ORDER = "order of class folders"  # rule: numbers or alphabet
    BESIDE_FOLDERS = "images beside the class folders"  # count, first (a file's name)
    FEWER_CLASSES = "classes without data"  # classes, found
    FEWER_FOLDERS = "classes without a folder"  # classes, folders, labels, positions (counted from 0 for want of names)
    # reproductions of the paper; of one network where ``network`` is among the values
    SMALL_SCALE = "smaller than the paper's"  # sizes: pairs; width, depth, input_shape, samples, images, patch
    RANK_KEPT = "components that keep the Jacobian rank"  # names, total
    SAMPLE_LIMIT = "dimension limited by the samples"  # samples
    NOT_IMAGENET = "class folders of other data"  # classes
    OTHER_COUNT = "another number of images than ImageNet's"  # images, usual
    IMAGES_UNREADABLE = "images that could not be read"  # files: pairs of a name and a reason
    IMAGES_CONVERTED = "images converted"  # modes: triples of a mode, a number and the first file; to
    TOO_FEW_TO_JUDGE = "too few images to tell from guessing"  # accuracy, images, classes
    LIKE_GUESSING = "accuracy like guessing"  # accuracy, images, classes, above (what is clearly no guess)
    ALL_ZERO = "every solution is zero"  # eta, as_printed, largest (η_max), shown (η), kept
    LOGITS_DEPENDENT = "fewer features than logits"  # features, classes
    NETWORK_LEFT_OUT = "network left out"  # reason
    LAYER_NOT_MEASURED = "layer not measured"  # where, reason
    FACTORY_WEIGHTS = "weights of the factory"  # folder, file


@dataclass(frozen=True)
class Fact:
    """One finding: its kind and the values that belong to it.

    Attributes
    ----------
    kind : FactKind
        What was found; its text is accepted too.
    values : mapping
        Plain values by name: text, numbers, tuples of these. Lists become tuples.
    caution : bool
        Whether it limits what the numbers may be used for.

    Raises
    ------
    ValueError
        For a kind that does not exist.

    Examples
    --------
    >>> fact = Fact("note", {"text": "measured twice"})
    >>> fact == Fact.from_dict(fact.to_dict())
    True
    """

    kind: FactKind
    values: Mapping[str, Any] = field(default_factory=dict)
    caution: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FactKind(self.kind))
        object.__setattr__(self, "values", frozen(dict(self.values)))

    def __hash__(self) -> int:
        return hash((self.kind, json.dumps(exact(self.values), sort_keys=True), self.caution))

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, exact: ``from_dict`` gives the fact back."""
        return {"kind": self.kind.value, "values": exact(self.values), "caution": self.caution}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fact:
        """What ``to_dict`` wrote."""
        return cls(FactKind(data["kind"]), read(Any, data["values"]), bool(data["caution"]))


def as_facts(found: Iterable[Fact | str], kind: FactKind = FactKind.NOTE) -> tuple[Fact, ...]:
    """Facts as they are; a text as a fact of that kind. A single text is one fact, not its letters.

    >>> [fact["text"] for fact in as_facts(["trained twice"])]
    ['trained twice']
    """
    each = [found] if isinstance(found, str | Fact) else found
    return tuple(one if isinstance(one, Fact) else Fact(kind, {"text": str(one)}) for one in each)


def about(network: str, facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The same facts as those of one network among several.

    >>> about("resnet", [Fact("no autograd graph")])[0]["network"]
    'resnet'
    """
    return tuple(Fact(fact.kind, {**fact.values, "network": network}, fact.caution) for fact in facts)


def of_kind(facts: Iterable[Fact], kind: FactKind) -> tuple[Fact, ...]:
    """Those of one kind, in order."""
    return tuple(fact for fact in facts if fact.kind is kind)


def gist(fact: Fact) -> tuple[Any, ...]:
    """What is equal for two facts that differ by rounding at most.

    >>> gist(Fact("linearised network", {"difference": 1e-7})) == gist(Fact("linearised network", {"difference": 2e-7}))
    True
    """
    return fact.kind, tuple(sorted((k, str(v)) for k, v in fact.values.items() if not isinstance(v, float)))


def unsaid(found: Iterable[Fact], said: Iterable[Fact]) -> list[Fact]:
    """Those of ``found`` that differ from all of ``said`` by more than rounding."""
    known = {gist(fact) for fact in said}
    return [fact for fact in found if gist(fact) not in known]


def kept_facts(data: Mapping[str, Any]) -> tuple[Fact, ...]:
    """The facts of a file; one of an earlier version has sentences alone."""
    if "facts" in data:
        return tuple(map(Fact.from_dict, data["facts"]))
    return as_facts(data["notes"], FactKind.EARLIER_NOTE)
