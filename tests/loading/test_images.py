"""Images: every kind of picture, every kind of folder, and what goes wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankscope._base.errors import DataError, UsageError
from rankscope.demo.digits_network import digits_split
from rankscope.loading import Preprocessing, class_order, images, load_images, load_model, plain_preprocessing

PLAIN = plain_preprocessing((3, 8, 8))


def picture(path: Path, mode: str = "RGB", value: int = 100, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b/ before a.png in no order: three good pictures, one cut off, one that is text."""
    picture(tmp_path / "pics" / "b.png")
    picture(tmp_path / "pics" / "a.PNG", value=0)
    picture(tmp_path / "pics" / "deep" / "c.jpg", value=255)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noisy.save(tmp_path / "cut.jpg")
    (tmp_path / "pics" / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "pics" / "text.png").write_text("not a picture")
    (tmp_path / "pics" / "notes.txt").write_text("left alone")
    return tmp_path / "pics"


def test_corrupt_images_are_named_skipped_and_counted(folder: Path) -> None:
    found = load_images(folder, preprocessing=PLAIN)
    assert found.names == ("a.PNG", "b.png", "deep/c.jpg")
    assert [name for name, _ in found.skipped] == ["cut.jpg", "text.png"]
    assert "truncated" in found.skipped[0][1]
    assert "no image" in found.skipped[1][1]
    assert found.tensor.shape == (3, 3, 8, 8)
    torch.testing.assert_close(found.tensor.mean((1, 2, 3)), torch.tensor([0.0, 100 / 255, 1.0]))
    assert found.labels is None


def test_another_image_takes_the_place_of_a_corrupt_one_under_a_limit(folder: Path) -> None:
    for seed in range(5):
        found = load_images(folder, preprocessing=PLAIN, limit=3, seed=seed)
        assert found.names == ("a.PNG", "b.png", "deep/c.jpg")
    draws = {load_images(folder, preprocessing=PLAIN, limit=1, seed=seed).names for seed in range(8)}
    assert len(draws) > 1
    again = [load_images(folder, preprocessing=PLAIN, limit=2, seed=3).names for _ in range(2)]
    assert again[0] == again[1]


def test_more_than_memory_holds_is_decoded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_images(folder, preprocessing=PLAIN)
    monkeypatch.setattr(images, "_KEEP_BYTES", 1000)
    lazy = load_images(folder, preprocessing=PLAIN)
    assert lazy._kept is None
    assert torch.equal(lazy.tensor, whole.tensor)
    assert torch.equal(lazy[-1], whole[-1])
    assert lazy.names == whole.names
    with pytest.raises(IndexError, match="image 3 of 3"):
        lazy[3]


def test_one_subfolder_per_class_gives_labels(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "1.png")
    picture(tmp_path / "cat" / "x" / "2.png")
    picture(tmp_path / "cat" / "1.png")
    found = load_images(tmp_path, preprocessing=PLAIN)
    assert found.class_names == ("cat", "dog")
    assert found.names == ("cat/1.png", "cat/x/2.png", "dog/1.png")
    assert found.labels == (0, 0, 1)


@pytest.mark.parametrize(
    ("folders", "order"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["10", "9", "two"], ("10", "9", "two")),
        (["n01443537", "n01440764"], ("n01440764", "n01443537")),
        (["n99999999", "n01440764"], ("n01440764", "n99999999")),
    ],
)
def test_classes_have_the_order_that_data_sets_have(tmp_path: Path, folders: list[str], order: tuple[str, ...]) -> None:
    """Another order here than for ``--data`` would give the same picture two labels."""
    for name in folders:
        picture(tmp_path / name / "1.png")
    found = load_images(tmp_path, preprocessing=PLAIN)
    assert found.class_names == order == class_order(folders).folders
    assert found.labels is not None
    assert [order[label] for label in found.labels] == sorted(folders)  # pictures come by path


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.uint16)).save(path)


def float_tiff(path: Path, value: float = 100 / 255) -> None:
    Image.fromarray(np.full((9, 9), value, dtype=np.float32)).save(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK", "I;16", "F"])
def test_every_mode_is_converted(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F") else "x.png")
    if mode == "I;16":
        sixteen_bit(path)
    elif mode == "F":
        float_tiff(path)
    else:
        picture(path, mode, value=255 if mode == "1" else 100)
    found = load_images(path, preprocessing=plain_preprocessing((channels, 8, 8)))
    assert found.shape == (channels, 8, 8)
    expected = 1.0 if mode == "1" else 100 / 255
    assert float(found.tensor.min()) == pytest.approx(expected, abs=2 / 255)
    assert float(found.tensor.max()) == pytest.approx(expected, abs=2 / 255)


def test_palette_with_transparency_and_32_bit_integers(tmp_path: Path) -> None:
    Image.new("RGBA", (9, 9), (100, 100, 100, 128)).convert("P").save(tmp_path / "p.png", transparency=0)
    Image.fromarray(np.full((9, 9), 25700, dtype=np.int32)).save(tmp_path / "i.tif")
    found = load_images(tmp_path, preprocessing=PLAIN)
    assert found.skipped == ()
    assert float(found[0].mean()) == pytest.approx(100 / 255, abs=1e-3)


def test_sixteen_bits_are_scaled_however_dark(tmp_path: Path) -> None:
    """Value v of 65,535 is v/65,535 of white: neither clipped at 255 nor taken for 8 bits where the picture is dark."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    dark = np.full((8, 8), 200, dtype=np.uint16)
    for name, values in (("dark", dark), ("ramp", ramp)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.mode == "I;16"  # Pillow 10 says "I", which does not tell how many bits a dark picture has
    found = load_images(tmp_path, preprocessing=plain_preprocessing((1, 8, 8)))
    # half of the last of 8 bits
    np.testing.assert_allclose(found[0][0].numpy(), dark / 65535, atol=0.51 / 255)
    np.testing.assert_allclose(found[1][0].numpy(), ramp / 65535, atol=0.51 / 255)


def test_nan_pixels_are_named(tmp_path: Path) -> None:
    float_tiff(tmp_path / "bad.tif", float("nan"))
    picture(tmp_path / "good.png")
    assert load_images(tmp_path, preprocessing=PLAIN).skipped == (("bad.tif", "NaN or infinite pixels"),)
    broken = Preprocessing("divides by zero", (3, 8, 8), lambda _: torch.full((3, 8, 8), float("inf")))
    with pytest.raises(DataError, match=r"none of the 2 images .*good\.png: NaN or infinite pixels"):
        load_images(tmp_path, preprocessing=broken)


def test_photos_digits_and_noise() -> None:
    photos = load_images("photos", preprocessing=plain_preprocessing((3, 16, 16)))
    assert photos.names == ("china.jpg", "flower.jpg")
    digits = load_images("digits", limit=5)
    assert digits.tensor.shape == (5, 1, 8, 8)
    assert digits.labels is not None
    assert len(digits.labels) == 5
    assert 0 <= float(digits.tensor.min()) <= float(digits.tensor.max()) == 1
    assert torch.equal(digits.tensor * 16, (digits.tensor * 16).round())
    big = load_images("digits", preprocessing=plain_preprocessing((3, 16, 16)), limit=5)
    assert big.names == digits.names
    assert big.labels == digits.labels
    noise = load_images("noise", preprocessing=plain_preprocessing((5, 4, 4)), limit=3, seed=2)
    assert noise.tensor.shape == (3, 5, 4, 4)
    assert torch.equal(noise.tensor, load_images("noise", preprocessing=noise_of(5), limit=3, seed=2).tensor)


def noise_of(channels: int) -> Preprocessing:
    return plain_preprocessing((channels, 4, 4))


def test_digits_are_those_held_out_from_training_unless_all_are_asked_for() -> None:
    split = digits_split()
    held_out, train, everything = (load_images(name) for name in ("digits", "digits:train", "digits:all"))
    assert torch.equal(held_out.tensor, split.held_out_images)
    assert held_out.labels == tuple(split.held_out_labels.tolist())
    assert torch.equal(train.tensor, split.train_images)
    assert len(everything) == 1797
    assert {*held_out.names, *train.names} == {*everything.names}
    assert "450 digits held out" in held_out.preprocessing
    assert "those of training too" in everything.preprocessing
    assert torch.equal(held_out.first(5).tensor, split.held_out_images[:5])
    assert held_out.first(5).names == held_out.names[:5]


@pytest.mark.parametrize(("count", "size", "sizes"), [(5, 2, [2, 3]), (4, 2, [2, 2]), (3, 8, [3]), (3, 1, [1, 1, 1])])
def test_batches_leave_no_single_image_over(count: int, size: int, sizes: list[int]) -> None:
    noise = load_images("noise", preprocessing=noise_of(3), limit=count)
    batches = list(noise.batches(size))
    assert [len(b) for b in batches] == sizes
    assert torch.equal(torch.cat(batches), noise.tensor)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    load_images("noise", preprocessing=noise_of(3))
    load_images("digits", limit=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_timm_preprocessing_is_timms_own(tmp_path: Path) -> None:
    loaded = load_model("timm:test_vit", weights="random")
    import timm

    path = picture(tmp_path / "x.png", size=(300, 200))
    config = timm.data.resolve_model_data_config(loaded.model)
    expected = timm.data.create_transform(**config, is_training=False)(Image.open(path))
    assert torch.equal(load_images(path, preprocessing=loaded.preprocessing)[0], expected)


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing' do not exist; give a folder, a file, or 'photos'"):
        load_images(tmp_path / "nothing", preprocessing=PLAIN)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"holds no images \(.*\.png.*\); give another"):
        load_images(tmp_path, preprocessing=PLAIN)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied; check who may read it"):
        load_images(tmp_path, preprocessing=PLAIN)


def test_unreadable_subfolder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = load_images(tmp_path, preprocessing=PLAIN)
    assert found.names == ("a.png",)
    assert found.skipped == (("locked/", "folder cannot be read: Permission denied"),)


def test_none_good(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"none of the 5 images .*0\.png: is no image .* and 2 more"):
        load_images(tmp_path, preprocessing=PLAIN)


def test_single_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"none of the 1 images .*x\.csv: is no image"):
        load_images(tmp_path / "x.csv", preprocessing=PLAIN)


def test_channels_that_no_picture_has() -> None:
    with pytest.raises(DataError, match="the model takes 4 channels, pictures have 1 or 3"):
        load_images("photos", preprocessing=plain_preprocessing((4, 8, 8)))


def test_transform_that_does_not_fit_the_model() -> None:
    wrong = Preprocessing("too small", (3, 8, 8), lambda _: torch.zeros(3, 4, 4))
    with pytest.raises(DataError, match=r"gave \(3, 4, 4\) but the model takes \(3, 8, 8\)"):
        load_images("photos", preprocessing=wrong)
    text = Preprocessing("no tensor", None, lambda _: "text")
    with pytest.raises(DataError, match="the preprocessing gave str; it must give one tensor"):
        load_images("photos", preprocessing=text)


def test_pictures_of_different_size_without_a_resize(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(9, 9))
    picture(tmp_path / "b.png", size=(9, 5))
    raw = Preprocessing("as is", None, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float())
    found = load_images(tmp_path, preprocessing=raw)
    assert found.skipped == (("b.png", "became (3, 5, 9), others (3, 9, 9); resize in the transform"),)


def test_unknown_input_size_and_bad_limit() -> None:
    with pytest.raises(DataError, match="the model's input size is not known; let its factory return"):
        load_images("photos")
    with pytest.raises(DataError, match="images 'nowhere' do not exist"):  # the nearer of the two mistakes
        load_images("nowhere")
    with pytest.raises(DataError, match="noise needs the model's input size"):
        load_images("noise")
    with pytest.raises(UsageError, match="limit is 0; at least one image"):
        load_images("digits", limit=0)


def test_a_file_of_arrays_is_no_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), dtype=np.float32))
    with pytest.raises(DataError, match=r"x\.npy' holds arrays, and images are read from picture files"):
        load_images(tmp_path / "x.npy", preprocessing=plain_preprocessing((3, 8, 8)))
