"""Tables 1 and 2 and Fig. 2: the networks, their accuracy, and how many principal components it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankscope._base.facts import Fact, FactKind, about, kept_facts
from rankscope._base.frames import Frame
from rankscope._base.provenance import device_name, versions
from rankscope.loading import imagenet_classes
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.data import VALIDATION
from rankscope.reproduce.measured import BOOTSTRAP, Prepared, clsdim, data_facts, pass_over, prepared
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.pictures import Picture
from rankscope.reproduce.settings import Settings
from rankscope.reproduce.structure import activation, main_block
from rankscope.slicing import Sample, select, trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["accuracy_curves", "classification_dimensions", "networks_table"]

_HOW = "axes of the centred covariance, features projected uncentred, first k with 95% of the accuracy"
_WHY_DIMENSION = "it depends on the exact weights and images; the interval is a bootstrap interval over the images"
_PRINTED_DIMENSION = "a number (Table 1; submission, Table 2); it names the network, but not its weights"
_CODE_DIMENSION = "the same projection, searched from k = 0 on"


def networks_table(name: str, settings: Settings) -> Reproduction:
    """Table 1 of the submission: layers, parameters and accuracy."""
    import pandas as pd

    rows, comparison, facts, abouts = [], [], [], []
    for one in prepared(settings):
        over = pass_over(one)
        names = _layers(one)
        count, millions = len(names), sum(p.numel() for p in one.loaded.model.parameters()) / 1e6
        top1, paper = 100 * over["accuracy"], one.network.paper
        rows.append(
            {
                "architecture": None if paper is None else paper.architecture,
                "network": one.network.name,
                "activation": activation(one.loaded.model),
                "parameters_millions": millions,
                "main_block": main_block(one.loaded.model, names),
                "layers": count,
                "top1_percent": top1,
                "images": over["samples"],
                "skipped": len(over["skipped"]),
                "paper_activation": None if paper is None else paper.activation,
                "paper_main_block": None if paper is None else paper.block,
                "paper_layers": None if paper is None else paper.layers,
                "paper_parameters_millions": None if paper is None else paper.parameters,
                "paper_top1_percent": None if paper is None else paper.top1,
            }
        )
        label = one.network.name
        printed = "" if paper is None else "a number (submission, Table 1)"
        code = settings.as_printed == "reference"
        fewer = "" if over["samples"] == VALIDATION else f", and {over['samples']:,} of {VALIDATION:,} images"
        comparison += [
            PaperComparison(
                f"{label}: layers", None if paper is None else float(paper.layers), float(count), None,
                f"cut points {one.network.cuts(settings.as_printed)}",
                one.why("the paper prints how many, not which", data="not"), printed,
                "" if paper is None else "cuts at equally many points",
            ),
            PaperComparison(
                f"{label}: parameters (M)", None if paper is None else paper.parameters, round(millions, 3), None,
                "every parameter, buffers left out", _why_parameters(one), printed,
            ),
            PaperComparison(
                f"{label}: top-1 (%)", None if paper is None else paper.top1, round(top1, 3), None,
                f"{over['samples']:,} images, its own preprocessing",
                one.why("other weights of the same name, another decoder or resize" + fewer, data="alone", code=code),
                printed, "" if paper is None else "; ".join(paper.code),
            ),
        ]  # fmt: skip
        facts += data_facts(one, over)
        abouts.append(one.about())
    return _made(
        name, "Table 1 (submission): the networks", settings, pd.DataFrame(rows), comparison,
        "These numbers depend neither on the tolerance nor on the background of the patch, so text and code agree. "
        f"Under both, {_best(rows)}.",
        facts, abouts, Picture("table", {"columns": _TABLE_1}),
    )  # fmt: skip


def classification_dimensions(name: str, settings: Settings) -> Reproduction:
    """Table 1 of the final version (2 of the submission): classification dimensions."""
    return _dimensions(name, "Table 2 (submission; 1 of the final version): classification dimensions", settings)


def accuracy_curves(name: str, settings: Settings) -> Reproduction:
    """Fig. 2: accuracy over the share of principal components kept."""
    return _dimensions(name, "Fig. 2: accuracy over principal components", settings)


def _dimensions(name: str, title: str, settings: Settings) -> Reproduction:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    comparison, facts, abouts = [], [], []
    for one in prepared(settings):
        over, found, paper = pass_over(one), clsdim(one), one.network.paper
        ours, centred, label = found[settings.as_printed], found["centred"], one.network.name
        code = settings.as_printed == "reference"
        low, high = ours["interval"] or (None, None)
        rows.append(
            {
                "network": label,
                "classification_dimension": ours["dimension"],
                "ambient": ours["ambient"],
                "lower": low,
                "upper": high,
                "text": found["paper"]["dimension"],
                "reference": found["reference"]["dimension"],
                "centred": centred["dimension"],
                "accuracy_percent": 100 * ours["full_accuracy"],
                "images": over["samples"],
                "paper": None if paper is None else paper.classification_dimension,
            }
        )
        for k, (kept, other) in enumerate(zip(ours["curve"], centred["curve"], strict=True), 1):
            curves.append(
                {
                    "network": label,
                    "k": k,
                    "percent_of_components": 100 * k / ours["ambient"],
                    "top1": kept,
                    "top1_centred": other,
                    "kept": kept / ours["full_accuracy"] if ours["full_accuracy"] else None,
                }
            )
        interval = f"; 95% interval {low}…{high}" if low is not None else ""
        comparison.append(
            PaperComparison(
                f"{label}: classification dimension",
                None if paper is None else float(paper.classification_dimension),
                float(ours["dimension"]), None, f"{_HOW}, from k = {0 if code else 1} on{interval}",
                one.why(_WHY_DIMENSION, data="alone", code=code),
                *((_PRINTED_DIMENSION, _CODE_DIMENSION) if paper is not None else ()),
            )
        )  # fmt: skip
        comparison.append(
            PaperComparison(
                f"{label}: ambient dimension", None if paper is None else float(paper.ambient), float(ours["ambient"]),
                None, "width of the head's input",
                one.why("fixed by the architecture: must agree", data="not"),
                *(("a number (Table 1)", "the width of the features before the classifier") if paper else ()),
            )
        )  # fmt: skip
        facts += data_facts(one, over)
        facts += about(label, kept_facts(ours))
        abouts.append(one.about())
    pairs = ", ".join(f"{r['network']} {r['centred']} instead of {r['classification_dimension']}" for r in rows)
    both = ", ".join(f"{r['network']} {r['text']} against {r['reference']}" for r in rows)
    said = (
        "The text (Eq. 6) does not state whether the mean is subtracted before projecting. The authors' code does not "
        "subtract it, and neither does rankscope here. Subtracting it and adding it back after the projection would "
        f"give {pairs}. The code starts its search at k = 0, which the text does not state; text against code: {both}."
    )
    plots = name == "fig2"
    frame = pd.DataFrame(curves if plots else rows)
    marks = {r["network"]: r for r in rows}
    return _made(
        name, title, settings, frame, comparison, said, facts, abouts,
        Picture("curves", {"marks": marks}) if plots else Picture("table", {"columns": _TABLE_2}),
    )  # fmt: skip


# the submission's columns in its order, the paper's values beside those that are measured
_TABLE_1 = [
    "architecture", "network", "activation", "paper_activation", "parameters_millions", "paper_parameters_millions",
    "main_block", "paper_main_block", "layers", "paper_layers", "top1_percent", "paper_top1_percent",
]  # fmt: skip
_TABLE_2 = ["network", "classification_dimension", "ambient", "paper"]


def _made(
    name: str, title: str, settings: Settings, values: pd.DataFrame, comparison: list[PaperComparison], said: str,
    facts: list[Fact], abouts: list[dict[str, Any]], picture: Picture,
) -> Reproduction:  # fmt: skip
    # the networks alone have no projection
    measured = {} if name == "table1" else {"keep": 0.95, "centred": False, "bootstrap": BOOTSTRAP[settings.scale]}
    small = [] if settings.full else [Fact(FactKind.SMALL_SCALE, {"sizes": ()})]
    return Reproduction(
        name=name,
        title=title,
        as_printed=settings.as_printed,
        numbers=Frame.of(values),
        comparison=tuple(comparison),
        disagreement=said,
        settings={**settings.to_dict(), **measured, "networks": abouts},
        provenance={**versions(), "device": device_name(settings.device)},
        facts=tuple(dict.fromkeys([*facts, *small])),
        picture=picture,
    )


def _layers(one: Prepared) -> list[str]:
    """Names of the cut points that are counted."""

    cuts = one.network.cuts(one.settings.as_printed)

    def compute(_: Path) -> list[str]:
        model, size = one.loaded.model, one.loaded.input_size
        shape = size if size is not None else tuple(one.dataset()[0][0].shape)
        noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(one.settings.seed))
        sample = Sample(noise, "example").to(one.settings.device, torch.float32)
        return [call.name for call in select(model, trace(model, sample), cuts)]

    found: list[str] = one.parts.keep(f"layers-{cuts}", {**one.identity(), "cut_points": cuts}, compute)
    return found


def _why_parameters(one: Prepared) -> str:
    classes, usual = len(one.folders), len(imagenet_classes()[0])
    if one.network.paper is not None and classes != usual:
        return f"other data: its head has {classes} classes here, the paper's {usual:,}"
    return one.why("the paper rounds, for some networks to whole millions", data="not")


def _best(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{r['network']} has {r['layers']} layers and {r['top1_percent']:.1f}% top-1" for r in rows)
