"""Models by name: what each source gives, that random weights repeat, and what is said when a name is wrong."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankscope._base.errors import ModelError, UsageError
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.loading import LoadedModel, calibrate_batchnorm, ensure_torchvision, load_images, load_model
from rankscope.loading._random import open_branches, seeded

# One small model of each source.
RANDOM = ["timm:test_resnet", "timm:test_vit", "torchvision:squeezenet1_1", "hf:mobilevit", "digits"]


@pytest.mark.parametrize("spec", RANDOM)
def test_every_source(spec: str) -> None:
    state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    loaded = load_model(spec, weights="random", seed=3)
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert state[1] == random.getstate()
    assert np.array_equal(state[2], np.random.get_state()[1])
    assert loaded.name == spec
    assert loaded.source == spec.partition(":")[0]
    assert loaded.weights == "random, seed 3"
    assert loaded.random
    assert not any(m.training for m in loaded.model.modules())
    assert loaded.input_size is not None
    assert loaded.preprocessing is not None
    found = load_images("photos", preprocessing=loaded.preprocessing, limit=1)
    assert found.shape == loaded.input_size
    with torch.no_grad():
        out = loaded.model(found.tensor)
    logits = out if isinstance(out, torch.Tensor) else out.logits
    assert bool(torch.isfinite(logits).all())
    assert float(logits.abs().max()) > 0


@pytest.mark.parametrize("spec", ["timm:test_resnet", "hf:mobilevit", "digits"])
def test_the_seed_decides(spec: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat(
            [p.detach().flatten() for p in load_model(spec, weights="random", seed=seed).model.parameters()]
        )

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_residual_branches_take_part() -> None:
    loaded = load_model("timm:test_resnet", weights="random")
    assert loaded.facts == (
        Fact(FactKind.RANDOM_WEIGHTS, {"seed": 0}, caution=True),
        Fact(FactKind.NORMS_OPENED, {"count": 4}),
    )
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        expected = timm.create_model("test_resnet", zero_init_last=False).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())


def test_a_zero_head_is_drawn_and_said() -> None:
    loaded = load_model("timm:gmixer_12_224", weights="random")
    assert loaded.facts[1:] == (Fact(FactKind.WEIGHTS_DRAWN, {"count": 1}),)
    assert bool(loaded.model.head.weight.any())  # type: ignore[union-attr]


def test_layer_scales_that_all_but_close_their_branches_are_said() -> None:
    loaded = load_model("timm:test_convnext", weights="random")
    (fact,) = loaded.facts[1:]
    assert (fact.kind, fact["count"]) == (FactKind.BRANCHES_NEARLY_CLOSED, 9)
    assert fact["largest"] == pytest.approx(1e-6)


class _Gains(nn.Module):
    """A layer scale that closes its branch, and parameters that say nothing of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 1e-4))
        self.bias = nn.Parameter(torch.tensor([5e-4]))  # one number may be small by chance
        self.gain = nn.Parameter(torch.zeros(0))  # no number at all starts at zero


def test_one_number_or_none_is_no_layer_scale() -> None:
    (fact,) = open_branches(_Gains(), seed=0)
    assert (fact.kind, fact["count"]) == (FactKind.BRANCHES_NEARLY_CLOSED, 1)
    assert fact["largest"] == pytest.approx(1e-4)


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 5, 2**62])
def test_any_seed_starts_all_three_generators(seed: int) -> None:
    def drawn() -> tuple[float, float, float]:
        with seeded(seed):
            return random.random(), float(np.random.random()), float(torch.rand(()))

    expected = random.Random(seed).random(), np.random.RandomState(seed % 2**32).random()
    assert drawn()[:2] == expected  # NumPy's old generator takes 32 bits
    assert drawn()[2] == float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def test_class_count_and_names() -> None:
    assert load_model("timm:test_resnet", weights="random", num_classes=7).model.num_classes == 7
    assert load_model("timm:test_resnet", weights="random").class_names is None
    assert load_model("digits").class_names == tuple("0123456789")


def test_bare_name_is_taken_as_timms() -> None:
    loaded = load_model("test_vit", weights="random")
    assert loaded.name == "timm:test_vit"
    taken = Fact(FactKind.TAKEN_AS, {"given": "test_vit", "taken": "timm:test_vit"})
    assert of_kind(loaded.facts, FactKind.TAKEN_AS) == (taken,)


def test_weights_from_a_file(tmp_path: Path) -> None:
    ensure_torchvision()
    import timm

    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, tmp_path / "w.pth")
    loaded = load_model("timm:test_vit", weights=tmp_path / "w.pth")
    assert loaded.weights.startswith("file w.pth")
    assert not loaded.random
    # timm's names for its 1,000 ImageNet classes
    assert loaded.class_names is not None
    assert loaded.class_names[0].startswith("tench")
    torch.save(load_model("digits").model.state_dict(), tmp_path / "d.pth")
    assert load_model("digits", weights=tmp_path / "d.pth").weights.startswith("file d.pth")
    with pytest.raises(ModelError, match=r"/d\.pth' does not fit the model: .*is it the right model"):
        load_model("timm:test_vit", weights=tmp_path / "d.pth")


def test_hugging_face_folder_round_trip(tmp_path: Path) -> None:
    ensure_torchvision()
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=3
    )
    config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    source = ViTForImageClassification(config).eval()
    source.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.input_size == (3, 32, 32)
    assert loaded.class_names == ("cat", "dog", "owl")
    assert loaded.model.config._attn_implementation == "eager"
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.model(x).logits, source(x).logits)
    again = load_model(f"hf:{tmp_path}", weights=tmp_path / "model.safetensors")
    torch.testing.assert_close(again.model(x).logits, source(x).logits)
    torch.save(load_model("digits").model.state_dict(), tmp_path / "digits.pth")
    with pytest.raises(ModelError, match=r"unknown to the model: .*is it the right model"):
        load_model(f"hf:{tmp_path}", weights=tmp_path / "digits.pth")
    cut = (tmp_path / "model.safetensors").read_bytes()[:500]
    (tmp_path / "model.safetensors").write_bytes(cut)
    with pytest.raises(ModelError, match=r"weights in folder .* cannot be loaded .*or use weights=.random."):
        load_model(f"hf:{tmp_path}")
    assert load_model(f"hf:{tmp_path}", weights="random").random


def test_hugging_face_text_model_has_no_preprocessing(tmp_path: Path) -> None:
    ensure_torchvision()
    from transformers import BertConfig

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    config.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", weights="random")
    assert loaded.preprocessing is None
    assert loaded.input_size is None
    assert type(loaded.model).__name__ == "BertModel"


WRONG: list[tuple[str, str]] = [
    ("timm:resnet19", "timm has no model 'resnet19'; did you mean 'resnet18'"),
    ("timm:resnet18.a1_in2k", "timm has no weights 'a1_in2k' for 'resnet18'; did you mean 'a1_in1k'"),
    ("torchvision:resnt18", "torchvision has no classification model 'resnt18'; did you mean 'resnet18'"),
    ("torchvision:resnet50.IMAGENET1K_V3", "no weights 'IMAGENET1K_V3' for 'resnet50'; did you mean 'IMAGENET1K_V"),
    ("hf:mobilvit", "Hugging Face has no architecture 'mobilvit' (did you mean 'mobilevit'"),
    ("resnet19", "model 'resnet19' is unknown; did you mean 'resnet18'"),
    ("digit", "model 'digit' is unknown; did you mean 'digits'"),
    (
        "foo",
        "model 'foo' is unknown; no known name is close; give one of timm:NAME, torchvision:NAME, hf:NAME, file.py",
    ),
    ("resnet19", "did you mean 'resnet18'? Sources: timm:NAME"),
    ("zzz:x", "known are 'hf', 'timm', 'torchvision'. A file's model"),
    ("tim:resnet18", "model source 'tim' is unknown; did you mean 'timm'"),
    ("timm:", "lacks a name after the colon"),
    ("", "model '' is unknown"),
    ("net.py", "lacks the function that builds it; write net.py:factory"),
    ("net.py:1x", "'1x' is no function name"),
]


@pytest.mark.parametrize(("spec", "message"), WRONG)
def test_wrong_names(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_model(spec, weights="random")


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="weights 'randm' are neither 'pretrained', 'random' nor a file"):
        load_model("digits", weights="randm")
    with pytest.raises(UsageError, match="num_classes is -1; give the number of classes, or 0 for the model without"):
        load_model("timm:test_vit", weights="random", num_classes=-1)
    with pytest.raises(UsageError, match="num_classes=3 with pretrained weights"):
        load_model("timm:test_vit", num_classes=3)
    with pytest.raises(UsageError, match="the digits network has 10 classes, not 3"):
        load_model("digits", weights="random", num_classes=3)
    with pytest.raises(UsageError, match=r"hf:vit is an architecture without weights; use weights=.random."):
        load_model("hf:vit")
    with pytest.raises(ModelError, match=r"weights file 'no/such\.pth' does not exist"):
        load_model("digits", weights="no/such.pth")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names do not resolve and nothing is cached, whatever machine this runs on."""
    import socket

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    ensure_torchvision()
    from huggingface_hub import constants

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("timm:test_vit", r"use weights=.random., or run python -c .*test_vit.* give weights=FILE"),
        ("torchvision:resnet18", r"use weights=.random., or download https://.*resnet18-f37072fd\.pth"),
        ("hf:google/no-such-model", r"run hf download google/no-such-model .* with weights=.random."),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_no_network_for_pretrained(spec: str, remedy: str) -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    with pytest.raises(ModelError, match=rf"of {spec} could not be fetched .*Without internet access: {remedy}"):
        load_model(spec)
    assert offline == constants.HF_HUB_OFFLINE


def test_no_pretrained_weights_exist() -> None:
    ensure_torchvision()
    import timm

    without = sorted(set(timm.list_models()) - {n.partition(".")[0] for n in timm.list_models(pretrained=True)})[0]
    with pytest.raises(ModelError, match=rf"timm has no pretrained weights for '{without}'; use weights=.random."):
        load_model(f"timm:{without}")


def test_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json; save_pretrained"):
        load_model(f"hf:{tmp_path}", weights="random")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model folder '.*none' does not exist"):
        load_model(f"hf:{tmp_path / 'none'}")


def test_public_names() -> None:
    from rankscope import loading

    # constants, classes, functions, each by the alphabet
    assert loading.__all__ == sorted(
        loading.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(hasattr(loading, name) for name in loading.__all__)


def test_import_stays_light() -> None:
    code = (
        "import sys, rankscope.loading\n"
        "heavy = ('torchvision', 'timm', 'transformers', 'sklearn', 'PIL', 'safetensors')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_random_network_calibrated_on_photographs() -> None:
    loaded: LoadedModel = load_model("timm:test_resnet", weights="random")
    photos = load_images("photos", preprocessing=loaded.preprocessing)
    fact = calibrate_batchnorm(loaded.model, photos.batches(8))
    assert fact is not None
    assert (fact["images"], fact["unused"]) == (2, 0)
    norms = [m for m in loaded.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool(m.running_mean.any()) for m in norms if m.running_mean is not None)


@pytest.mark.parametrize(
    ("spec", "builder"),
    [
        ("timm:test_resnet", "timm.create_model"),
        ("torchvision:squeezenet1_1", "torchvision.models.get_model"),
        ("hf:vit", "transformers.ViTForImageClassification._from_config"),
    ],
)
@pytest.mark.parametrize(("said", "shown"), [("no kernel\nfor this", "ValueError: no kernel"), ("", "ValueError")])
def test_what_a_builder_says_is_one_line(
    spec: str, builder: str, said: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError(*[said] if said else [])

    monkeypatch.setattr(builder, fails)
    with pytest.raises(ModelError, match=rf"\A[^\n]+: {shown}\Z"):
        load_model(spec, weights="random")
