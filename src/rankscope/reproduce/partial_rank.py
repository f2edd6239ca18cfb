"""Fig. 1 (a, b, c): partial rank of the Jacobian at every layer, over the columns of a 16×16 patch.

As the text has it: the largest rank over the images, at the paper's layers, the image around the patch. As the authors'
code has it: the mean of the ranks of 10 images, at its own layers, zeros around the patch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError, parameter
from rankscope._base.facts import Fact, FactKind, about, kept_facts
from rankscope._base.frames import Frame
from rankscope._base.identity import identity_of
from rankscope._base.provenance import device_name, versions
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import load_images
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.converted import converted_fact, converted_images
from rankscope.reproduce.measured import Prepared, prepared, skipped_fact
from rankscope.reproduce.networks import PAPER_NETWORKS
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.partial_rank_figure import called
from rankscope.reproduce.patches import patch_at
from rankscope.reproduce.pictures import Picture
from rankscope.reproduce.settings import Settings
from rankscope.slicing import Patch
from rankscope.views.sentences import phrase

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BACKGROUNDS", "enough_images", "panel_networks", "partial_rank"]

_PANELS = {"fig1a": ("a", "resnet", "ResNets"), "fig1b": ("b", "mixer", "MLP-Mixers")}
_PANELS["fig1c"] = ("c", "transformer", "transformers")
BACKGROUNDS = {"paper": "image", "reference": "zero"}  # outside the patch
_RANK = {"paper": "largest", "reference": "mean"}  # of the images' ranks
_THRESHOLDS = {"paper": "σ ≥ eps32·min(d, K)·σ₁", "reference": "σ ≥ √(eps32·K)·σ₁"}
_SIZES = {"full": (16, 16), "small": (2, 8)}  # images, side of the patch; 16×16×3: paper, §6.1
_CODE_IMAGES = 10  # the authors' code: mean over 10 shuffled validation images
_PRINTED = "a curve without values; the text says neither which images nor how many, nor (final version) the tolerance"
_CODE = (
    f"mean over {_CODE_IMAGES} shuffled validation images of the default matrix_rank of the float32 Gram matrix JᵀJ, "
    "zeros around the patch"
)
_WHY = "numerical rank depends on the images, on how many they are, and on the tolerance"
_WHY_RISES = (
    "exact rank cannot rise along true cuts; numerical rank can, since its threshold follows each layer's own σ₁"
)
_PRINTED_LAYERS = "how many layers there are (submission, Table 1), not which"
_CODE_LAYERS = {
    "resnet": "cuts at the max-pooling, every block, the pooled features and the class logits",
    "other": "cuts at equally many points; we do not know which",
}


def panel_networks(name: str) -> tuple[str, ...]:
    """The paper's networks of a panel.

    >>> panel_networks("fig1a")
    ('ResNet-18', 'ResNet-50')
    """
    return tuple(p.name for p in PAPER_NETWORKS if p.family == _PANELS[name][1])


def _images(settings: Settings, as_printed: str) -> int:
    """How many images are measured: as many as are asked for, else 16 for the text and the code's own 10."""
    images = settings.images or _SIZES[settings.scale][0]
    return min(images, _CODE_IMAGES) if as_printed == "reference" and settings.images is None else images


def enough_images(settings: Settings, root: Path, held: int, words: str = "", as_printed: str = "paper") -> None:
    """Raise ``UsageError`` where the folder holds fewer images than are asked for; the text asks for the most."""
    images = _images(settings, as_printed)
    if held < images:
        raise UsageError(
            f"{parameter('images')} {images}, but {str(root)!r} has {held:,}{words}; give a number up to that"
        )


def partial_rank(name: str, settings: Settings) -> Reproduction:
    """Measure every network of the panel with the image and with zeros around the patch, one part each."""
    import pandas as pd

    letter, _, words = _PANELS[name]
    rows: list[dict[str, Any]] = []
    comparison: list[PaperComparison] = []
    facts: list[Fact] = []
    abouts = []
    side = _SIZES[settings.scale][1]
    images = _images(settings, settings.as_printed)
    for one in prepared(settings, panel_networks(name)):
        found = {as_printed: _measured(one, as_printed, side) for as_printed in BACKGROUNDS}
        for as_printed, part in found.items():
            rows += [{"network": one.network.name, "as_printed": as_printed, **row} for row in part["layers"]]
        chosen = found[settings.as_printed]
        comparison += _compare(one, chosen, settings.as_printed)
        abouts.append({**one.about(), **_where(one, side), "images": chosen["images"], "method": chosen["method"]})
        facts += one.facts()
        facts += about(one.network.name, [*kept_facts(chosen), *skipped_fact(chosen["skipped"])])
        facts += converted_fact(chosen.get("converted", []), one.channels)
    if not settings.full:
        facts.append(Fact(FactKind.SMALL_SCALE, {"sizes": (("images", images), ("patch", side))}))
    values = pd.DataFrame(rows)
    return Reproduction(
        name=name,
        title=f"Fig. 1 ({letter}): partial rank of the Jacobian, {called(list(values['network']), words)}",
        as_printed=settings.as_printed,
        numbers=Frame.of(values),
        comparison=tuple(comparison),
        disagreement=_disagreement(values, side),
        settings={
            **settings.to_dict(),
            "patch": side,
            "patch_position": settings.patch,
            "images": images,
            "rank": _RANK[settings.as_printed],
            "background": BACKGROUNDS[settings.as_printed],
            "tolerance": settings.as_printed,
            "threshold": _THRESHOLDS[settings.as_printed],
            "networks": abouts,
        },
        provenance={**versions(), "device": device_name(settings.device)},
        facts=tuple(dict.fromkeys(facts)),
        picture=Picture(
            "ranks",
            {
                "letter": letter,
                "words": words,
                "as_printed": settings.as_printed,
                "background": BACKGROUNDS[settings.as_printed],
                "bar": _RANK[settings.as_printed],
            },
        ),
    )


def _where(one: Prepared, side: int) -> dict[str, Any]:
    """Rows and columns of the patch in the network's input, from the first to before the last."""
    offset = _patch(one, side).offset
    assert offset is not None
    top, left = offset
    return {"patch_rows": [top, top + side], "patch_columns": [left, left + side]}


def _patch(one: Prepared, side: int) -> Patch:
    _, height, width = one.loaded.input_size or tuple(one.dataset()[0][0].shape)
    return patch_at(one.settings.patch, side, height, width)


def _measured(one: Prepared, as_printed: str, side: int) -> dict[str, Any]:
    background, images, cuts = BACKGROUNDS[as_printed], _images(one.settings, as_printed), one.network.cuts(as_printed)
    data = load_images(
        one.folders.root, preprocessing=one.loaded.preprocessing, limit=images, seed=one.settings.seed
    )  # fmt: skip
    enough_images(one.settings, one.folders.root, len(data), " that can be read", as_printed)
    given = {**one.identity(), "background": background, "patch": side, "images": images, "drawn": list(data.names)}
    # files of the same names may hold other pictures
    given |= {"cut_points": cuts, "patch_position": one.settings.patch, "pixels": identity_of(data.tensor).key}

    def compute(folder: Path) -> dict[str, Any]:
        profile = jacobian_rank(
            one.loaded.model,
            data.tensor,
            cut_points=cuts,
            columns=_patch(one, side),
            background="image" if background == "image" else "zero",
            tolerance=as_printed,
            device=one.settings.device,
            checkpoint=folder / "images",
            processes="this",
            names=lambda i: data.names[i],
            progress=lambda done, total, _: one.settings.report(done, total, f"{one.network.name}, {background}"),
        )
        files = [str(one.folders.root / name) for name in data.names]
        return {
            **_plain(profile, data.skipped, _RANK[as_printed]),
            "converted": converted_images(one.folders.root, files, one.channels),
        }

    found: dict[str, Any] = one.parts.keep(f"rank-{background}", given, compute)
    return found


def _plain(profile: JacobianProfile, skipped: tuple[tuple[str, str], ...], rank: str) -> dict[str, Any]:
    layers = []
    reading = profile.reading
    for number, layer in enumerate(profile.layers, 1):
        said = profile.summary(layer)
        shown = {name: said["function_rank"][name] for name in ("value", "lower", "upper")}
        if rank == "mean":
            seen = reading.rank[number - 1] >= 0
            each = {"value": reading.rank, "lower": reading.lower, "upper": reading.upper}
            shown = {name: float(array[number - 1][seen].mean()) if seen.any() else 0.0 for name, array in each.items()}
        layers.append(
            {
                "index": number,
                "layer": layer.name,
                "rows": layer.rows,
                "columns": layer.columns,
                "true_cut": layer.true_cut,
                "rank": shown["value"],
                "lower": shown["lower"],
                "upper": shown["upper"],
                "min": said["rank"]["min"],
                "median": said["rank"]["median"],
                "max": said["rank"]["max"],
                "images": said["images"],
            }
        )
    # a run that was stopped and taken up again leaves the record that it would have left without
    facts = [fact for fact in profile.facts if fact.kind is not FactKind.READ_BACK]
    missing = [Fact(FactKind.LAYER_NOT_MEASURED, {"where": k, "reason": v}) for k, v in profile.unmeasured.items()]
    return {
        "layers": layers,
        "rises": profile.rises() if rank == "largest" else _rises(layers),
        "images": list(profile.images),
        "method": phrase(profile.method),
        "certificate": phrase(profile.certificate),
        "facts": [fact.to_dict() for fact in (*facts, *missing)],
        "skipped": [list(pair) for pair in skipped],
    }


def _rises(layers: list[dict[str, Any]]) -> dict[str, float]:
    """True cuts whose mean rank exceeds the smallest before them, and by how much."""
    found: dict[str, float] = {}
    least: float | None = None
    for layer in layers:
        if not layer["true_cut"]:
            continue
        if least is not None and layer["rank"] > least:
            found[layer["layer"]] = layer["rank"] - least
        least = layer["rank"] if least is None else min(least, layer["rank"])
    return found


def _compare(one: Prepared, found: dict[str, Any], as_printed: str) -> list[PaperComparison]:
    name, paper, layers = one.network.name, one.network.paper, found["layers"]
    images = len(found["images"])
    how = f"{_RANK[as_printed]} rank of {images} images, tolerance {as_printed}, background {BACKGROUNDS[as_printed]}"
    if one.settings.patch != "centre":
        how += f", patch at {one.settings.patch}"
    rises, why = len(found["rises"]), one.why(_WHY, data="also", code=as_printed == "reference")
    printed, code = (_PRINTED, _CODE) if paper is not None else ("", "")
    family = "resnet" if paper is not None and paper.family == "resnet" else "other"
    return [
        PaperComparison(
            f"{name}: layers",
            None if paper is None else float(paper.layers),
            float(len(layers)),
            None,
            f"cut points {one.network.cuts(as_printed)}: {layers[0]['layer']} … {layers[-1]['layer']}",
            one.why("our cut points are chosen to give this number", data="not"),
            _PRINTED_LAYERS if paper is not None else "",
            _CODE_LAYERS[family] if paper is not None else "",
        ),
        *(
            PaperComparison(
                f"{name}: rank at the {place} layer", None, float(layer["rank"]), None, f"{how}, at {layer['layer']}",
                why, printed, code,
            )
            for place, layer in (("first", layers[0]), ("last", layers[-1]))
        ),
        PaperComparison(
            f"{name}: rises along the depth",
            None if paper is None else 0.0,
            float(rises),
            None,
            how,
            one.why(_WHY_RISES, data="also"),
            "consistent diminishing of partial ranks in each layer (§6.1)" if paper is not None else "",
            "draws the ranks unchanged" if paper is not None else "",
        ),
    ]  # fmt: skip


def _disagreement(values: pd.DataFrame, side: int) -> str:
    last = values.groupby(["network", "as_printed"], sort=False).last()
    ranks, layers = (last[column].unstack("as_printed") for column in ("rank", "layer"))
    pairs = ", ".join(
        f"{name} {r['paper']:g} at {at['paper']} against {r['reference']:g} at {at['reference']}"
        for (name, r), (_, at) in zip(ranks.iterrows(), layers.iterrows(), strict=True)
    )
    return (
        f"The text takes the largest rank over the images and counts singular values down to "
        f"eps32·min(d, {3 * side * side}) of the largest. The authors' code takes the mean over {_CODE_IMAGES} images, "
        "sets all but the patch to zero, counts singular values down to "
        f"√(eps32·{3 * side * side}) of the largest (the default rank of the float32 Gram matrix), and measures "
        f"ResNets up to the class logits. The ranks at the last layer are, text against code: {pairs}."
    )
