"""The paper's six networks, those that a user adds, and where their weights come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankscope._base.errors import DataError, ModelError, NotFetchedError, UsageError, nearest, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope.loading import LoadedModel, load_model, read_weights
from rankscope.reproduce.fetching import check_fetchable, how_to_fetch, is_kept
from rankscope.reproduce.settings import Settings

__all__ = ["PAPER_NETWORKS", "Network", "PaperNetwork", "choose", "load", "participants"]

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the paper and what it prints of it (submission, Table 1; final version, Table 1).

    Attributes
    ----------
    name, family : str
        As in the paper; ``resnet``, ``mixer`` or ``transformer``, its three panels of Fig. 1.
    spec : str
        Where the weights come from, as ``load_model`` names it. The paper names the networks, not the files: these are
        the ones whose published accuracy is the paper's.
    layers, parameters, top1, classification_dimension, ambient
        Number of layers, millions of parameters, top-1 accuracy in %, classification dimension of how many dimensions.
    architecture, activation, block : str
        The other columns of the submission's Table 1: Arch., Activ. and Main Block.
    code : tuple of str
        In what the authors' published code departs from the text: weights and preprocessing.
    """

    name: str
    family: str
    spec: str
    layers: int
    parameters: float
    top1: float
    classification_dimension: int
    ambient: int
    architecture: str
    activation: str
    block: str
    code: tuple[str, ...] = ()


_SQUASHED = "resizes images to 256×256 without keeping their shape"
_HALVES = "normalises with mean and deviation 0.5 and crops 0.9 of the image"
PAPER_NETWORKS = (
    PaperNetwork(
        "ResNet-18", "resnet", "torchvision:resnet18.IMAGENET1K_V1", 11, 11.7, 69.8, 149, 512,
        "ResNets", "ReLU", "Bottleneck", (_SQUASHED,),
    ),
    PaperNetwork(
        "ResNet-50", "resnet", "torchvision:resnet50.IMAGENET1K_V1", 19, 25.6, 76.1, 131, 2048,
        "ResNets", "ReLU", "Bottleneck", (_SQUASHED,),
    ),
    PaperNetwork(
        "GluMixer-24", "mixer", "timm:gmixer_24_224.ra3_in1k", 24, 25.0, 78.1, 199, 384,
        "MLP-like", "SiLU", "Mixer-Block", (_HALVES,),
    ),
    PaperNetwork(
        "ResMLP-S24", "mixer", "timm:resmlp_24_224.fb_in1k", 24, 30.0, 79.4, 196, 384,
        "MLP-like", "GELU", "Mixer-Block",
        ("loads the weights resmlp_24_224_raa (79.2% by timm's notes), where the text's 79.4% is of other weights",
         _HALVES),
    ),
    PaperNetwork(
        "ViT-T", "transformer", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", 13, 5.7, 75.5, 109, 192,
        "Transformer", "GELU", "ViT-Block",
    ),
    PaperNetwork(
        "Swin-T", "transformer", "timm:swin_tiny_patch4_window7_224.ms_in1k", 18, 29.0, 81.3, 344, 768,
        "Transformer", "GELU", "Swin-Block",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network that takes part: the name it goes by, what ``load_model`` is asked for, and its local file.

    ``origin`` says where weights come from that are not where they were looked for.
    """

    name: str
    spec: str
    paper: PaperNetwork | None
    file: Path | None
    origin: Fact | None = None

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name.lower()).strip("-.")

    @property
    def cut_points(self) -> str:
        """The paper's layers for its own networks, the blocks of any other."""
        return self.cuts("paper")

    def cuts(self, as_printed: str) -> str:
        """The layers of the text or of the authors' code for the paper's own networks, the blocks of any other."""
        return "blocks" if self.paper is None else as_printed


def choose(settings: Settings, names: Iterable[str] | None = None) -> tuple[Network, ...]:
    """The networks of an experiment: the paper's (those of ``names``; default all six), then the user's.

    Raises
    ------
    UsageError
        For an unknown name in ``only``, or when no network is left.
    ModelError
        When ``weights`` lacks a network's file or holds two, or without ``weights`` when pretrained ones can neither
        be found nor fetched; all that are missing are named.
    """
    allowed = tuple(names) if names is not None else tuple(p.name for p in PAPER_NETWORKS)
    found = participants(settings, allowed)
    if not found:
        raise UsageError(
            f"no network is left: this experiment has {', '.join(allowed)} and {parameter('only')} names none of them; "
            f"add one with {parameter('networks')}"
        )
    if settings.weights is not None:
        return _local(found, settings.weights)
    check_fetchable(_wanted(found))
    return tuple(found)


def participants(settings: Settings, names: Iterable[str] | None = None) -> list[Network]:
    """The networks of an experiment as ``choose`` finds them, without their files; empty where none is left.

    Raises
    ------
    UsageError
        For an unknown name in ``only``.
    """
    allowed = tuple(names) if names is not None else tuple(p.name for p in PAPER_NETWORKS)
    wanted = allowed
    if settings.only is not None:
        known = {_plain(p.name): p.name for p in PAPER_NETWORKS}
        for given in settings.only:
            if _plain(given) not in known:
                raise UsageError(
                    f"{parameter('only')} {given!r} is none of the paper's networks; {nearest(given, known.values())}"
                )
        asked = {known[_plain(given)] for given in settings.only}
        wanted = tuple(name for name in allowed if name in asked)
    found = [Network(p.name, p.spec, p, None) for p in PAPER_NETWORKS if p.name in wanted]
    return [*found, *(Network(_called(spec), spec, None, None) for spec in settings.networks)]


def load(network: Network, classes: int, imagenet: Path, others: Sequence[Network] = ()) -> LoadedModel:
    """The network with trained weights and a head of exactly ``classes`` classes.

    Raises
    ------
    ModelError
        When weights cannot be fetched (all of ``others`` that lack theirs are named too) or belong to another
        architecture (the file is named).
    DataError, ModelError
        When the head has more or fewer classes than the folder.
    """
    from rankscope.features import find_head

    if network.file is None:
        try:
            loaded = load_model(network.spec)
        except NotFetchedError as error:
            lacking = [n for n in others if n is not network and not is_kept(n.spec)]
            raise ModelError(f"{error.reason}: {how_to_fetch(_wanted([network, *lacking]))}") from error
        head: Any = find_head(loaded.model)[1]
        _check_head(int(head.weight.shape[0]), classes, network.name, imagenet)
        return loaded if network.origin is None else replace(loaded, facts=(network.origin, *loaded.facts))
    skeleton = load_model(network.spec, weights="random")
    held = _head_rows(network.file, find_head(skeleton.model)[0])
    if held is None:  # nothing of that name: let the loader say all that does not fit
        return load_model(network.spec, weights=network.file)
    own: Any = find_head(skeleton.model)[1]
    same = held == int(own.weight.shape[0])
    loaded = load_model(network.spec, weights=network.file, num_classes=None if same else held)
    _check_head(held, classes, f"{network.file} ({network.name})", imagenet)
    return loaded


def _wanted(networks: Iterable[Network]) -> list[tuple[str, str, str]]:
    return [(n.name, n.spec, _stems(n)[0]) for n in networks]


def _check_head(head: int, classes: int, holder: str, imagenet: Path) -> None:
    folder = f"{parameter('imagenet')} {str(imagenet)!r}"
    if head > classes:
        raise DataError(
            f"{folder} has {classes} class folders, but the head of {holder} has {head} classes: "
            f"{head - classes} are missing; give the whole validation folder, one subfolder per class"
        )
    if head < classes:
        raise ModelError(
            f"the head of {holder} has {head} classes, but {folder} has {classes} class folders; "
            "give weights that were trained on these classes"
        )


def _head_rows(file: Path, name: str) -> int | None:
    """Number of classes of a checkpoint, from the weight that ends in the head's name."""
    tensors = read_weights(file)
    key = f"{name}.weight"
    rows = [len(v) for k, v in tensors.items() if (k == key or k.endswith(f".{key}")) and v.ndim in (2, 4)]
    return rows[0] if rows else None


def _local(networks: list[Network], folder: Path) -> tuple[Network, ...]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES)
    found: list[Network] = []
    missing: list[str] = []
    remedies: set[str] = set()
    for network in networks:
        stems = _stems(network)
        fits = [f for f in files if any(f.stem == s or f.name.startswith((f"{s}-", f"{s}.")) for s in stems)]
        if len(fits) > 1:
            raise ModelError(
                f"{parameter('weights')} {str(folder)!r} has {len(fits)} files for {network.name}: "
                f"{', '.join(f.name for f in fits)}; leave one"
            )
        if not fits and network.spec.rpartition(":")[0].endswith(".py"):
            own = Fact(FactKind.FACTORY_WEIGHTS, {"folder": str(folder), "file": stems[0]})
            found.append(replace(network, origin=own))
            continue
        if not fits:
            missing.append(f"{stems[0]}.safetensors (or .pth) for {network.name}")
            remedies.add(
                f"drop added networks from {parameter('networks')}"
                if network.paper is None
                else f"leave networks out with {parameter('only')}"
            )
            continue
        found.append(Network(network.name, network.spec, network.paper, fits[0]))
    if missing:
        raise ModelError(
            f"{parameter('weights')} {str(folder)!r} lacks {'; '.join(missing)}: put the files there, or "
            f"{' and '.join(sorted(remedies))}"
        )
    return tuple(found)


def _stems(network: Network) -> list[str]:
    """Names that a network's file may have, the model's own first.

    >>> _stems(Network("ViT-T", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", None, None))
    ['vit_tiny_patch16_224', 'ViT-T', 'vit-t']
    """
    name = network.spec.rpartition(":")[2].rpartition("/")[2]
    base = name.partition(".")[0] if network.spec.partition(":")[0] in ("timm", "torchvision") else name
    listed = [base] if network.paper is None and ":" in network.name else [base, network.name, network.name.lower()]
    return list(dict.fromkeys(listed))


def _called(spec: str) -> str:
    """What an added model goes by: its spec, or for a file its factory.

    >>> _called("timm:resnet10t"), _called("some/net.py:small")
    ('timm:resnet10t', 'small')
    """
    file, _, factory = spec.rpartition(":")
    return factory if file.endswith(".py") else spec


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
