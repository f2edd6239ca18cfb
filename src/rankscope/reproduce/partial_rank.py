"""Fig. 1 (a, b, c): partial rank of the Jacobian at every layer, over the columns of the central 16×16 patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError, parameter
from rankscope._base.facts import Fact, FactKind, about, kept_facts
from rankscope._base.frames import Frame
from rankscope._base.provenance import device_name, versions
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import load_images
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.converted import converted_fact, converted_images
from rankscope.reproduce.measured import Prepared, prepared, skipped_fact
from rankscope.reproduce.networks import PAPER_NETWORKS
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.partial_rank_figure import called
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
_THRESHOLDS = {"paper": "σ ≥ eps32·min(d, K)·σ₁", "reference": "σ ≥ √(eps32·K)·σ₁"}
_SIZES = {"full": (16, 16), "small": (2, 8)}  # images, side of the patch; 16×16×3: paper, §6.1
_WHY = (
    "the paper draws this curve and prints no value; it says neither which images nor how many, nor (final version) "
    "the tolerance, and numerical rank moves with each"
)

_WHY_RISES = (
    "the paper speaks of consistent diminishing in each layer; exact rank cannot rise along true cuts, a numerical one "
    "can, since its threshold follows each layer's own σ₁"
)


def panel_networks(name: str) -> tuple[str, ...]:
    """The paper's networks of a panel.

    >>> panel_networks("fig1a")
    ('ResNet-18', 'ResNet-50')
    """
    return tuple(p.name for p in PAPER_NETWORKS if p.family == _PANELS[name][1])


def enough_images(settings: Settings, root: Path, held: int, words: str = "") -> None:
    """Raise ``UsageError`` where the folder holds fewer images than are asked for."""
    images = settings.images or _SIZES[settings.scale][0]
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
    images, side = _SIZES[settings.scale]
    images = settings.images or images
    for one in prepared(settings, panel_networks(name)):
        found = {as_printed: _measured(one, as_printed, images, side) for as_printed in BACKGROUNDS}
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
            "patch_position": "centre of the image, all channels",
            "images": images,
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
            },
        ),
    )


def _where(one: Prepared, side: int) -> dict[str, Any]:
    """Rows and columns of the patch in the network's input, from the first to before the last."""
    _, height, width = one.loaded.input_size or tuple(one.dataset()[0][0].shape)
    top, left = (height // 2 - side // 2, width // 2 - side // 2)
    return {"patch_rows": [top, top + side], "patch_columns": [left, left + side]}


def _measured(one: Prepared, as_printed: str, images: int, side: int) -> dict[str, Any]:
    background = BACKGROUNDS[as_printed]
    data = load_images(
        one.folders.root, preprocessing=one.loaded.preprocessing, limit=images, seed=one.settings.seed
    )  # fmt: skip
    enough_images(one.settings, one.folders.root, len(data), " that can be read")
    given = {**one.identity(), "background": background, "patch": side, "images": images, "drawn": list(data.names)}

    def compute(folder: Path) -> dict[str, Any]:
        profile = jacobian_rank(
            one.loaded.model,
            data.tensor,
            cut_points=one.network.cut_points,
            columns=Patch(side),
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
            **_plain(profile, data.skipped),
            "converted": converted_images(one.folders.root, files, one.channels),
        }

    found: dict[str, Any] = one.parts.keep(f"rank-{background}", given, compute)
    return found


def _plain(profile: JacobianProfile, skipped: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    layers = []
    for number, layer in enumerate(profile.layers, 1):
        said = profile.summary(layer)
        layers.append(
            {
                "index": number,
                "layer": layer.name,
                "rows": layer.rows,
                "columns": layer.columns,
                "true_cut": layer.true_cut,
                "rank": said["function_rank"]["value"],
                "lower": said["function_rank"]["lower"],
                "upper": said["function_rank"]["upper"],
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
        "rises": profile.rises(),
        "images": list(profile.images),
        "method": phrase(profile.method),
        "certificate": phrase(profile.certificate),
        "facts": [fact.to_dict() for fact in (*facts, *missing)],
        "skipped": [list(pair) for pair in skipped],
    }


def _compare(one: Prepared, found: dict[str, Any], as_printed: str) -> list[PaperComparison]:
    name, paper, layers = one.network.name, one.network.paper, found["layers"]
    how = f"tolerance {as_printed}, background {BACKGROUNDS[as_printed]}, largest of {len(found['images'])} images"
    rises, why = len(found["rises"]), one.why(_WHY, data="also")
    return [
        PaperComparison(
            f"{name}: layers",
            None if paper is None else float(paper.layers),
            float(len(layers)),
            None,
            f"cut points {one.network.cut_points}",
            one.why("the paper prints how many layers, not which; ours are the ones that give that number", data="not"),
        ),
        PaperComparison(f"{name}: rank at the first layer", None, float(layers[0]["rank"]), None, how, why),
        PaperComparison(f"{name}: rank at the last layer", None, float(layers[-1]["rank"]), None, how, why),
        PaperComparison(
            f"{name}: rises along the depth",
            None if paper is None else 0.0,
            float(rises),
            None,
            how,
            one.why(_WHY_RISES, data="also"),
        ),
    ]


def _disagreement(values: pd.DataFrame, side: int) -> str:
    last = values.groupby(["network", "as_printed"], sort=False).last()["rank"].unstack("as_printed")
    pairs = ", ".join(f"{name} {int(r['paper'])} against {int(r['reference'])}" for name, r in last.iterrows())
    return (
        f"The text measures at the image and counts singular values from eps32·min(d, {3 * side * side}) of the "
        "largest on, the authors' code sets all but the patch to zero and takes the default rank of the float32 Gram "
        f"matrix, √(eps32·{3 * side * side}) of the largest. At the last layer the text's rank against the code's is "
        f"here: {pairs}."
    )
