"""Images by name: scikit-learn's photographs and digits, a folder, one file, or noise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch

from rankscope._base.errors import DataError, UsageError, first_line, parameter
from rankscope._base.progress import Progress, Reporter, reporting
from rankscope.loading.class_order import class_order
from rankscope.loading.digits import DIGITS, digits_of
from rankscope.loading.preprocessing import Preprocessing, check_channels

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "Images",
    "check_images",
    "image_files",
    "is_image",
    "is_left_behind",
    "load_images",
    "read_picture",
    "refuse_unreadable",
]

_KINDS = ("bmp", "gif", "jfif", "jp2", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp")
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS)
# of Python, macOS, ext4, Synology (thumbnails beside every folder of pictures), QNAP and Windows
_LEFT_BEHIND = frozenset(
    (
        "__pycache__",
        "__MACOSX",
        "lost+found",
        "@eaDir",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
    )
)
_KEEP_BYTES = 1 << 30
_NOISE = 16
_SHOWN = 3


@dataclass(frozen=True)
class Images:
    """Images ready for a model: a sequence of (C, H, W) float32 tensors with their names.

    ``skipped`` pairs each image that could not be used with the reason. ``labels`` index ``class_names``, for
    digits and for folders with one subfolder per class: names of ImageNet in its order, whole numbers in theirs, others
    in that of the alphabet. They count from 0 without a gap, where ``--data`` asks the head for the number of a class.
    Up to 1 GiB is kept in memory; beyond, images are decoded
    again when asked for.
    """

    source: str
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: str
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    _kept: torch.Tensor | None = field(default=None, repr=False, compare=False)
    _load: Callable[[int], torch.Tensor] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        if self._kept is not None:
            return self._kept[index]
        assert self._load is not None
        return self._load(index % len(self))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def tensor(self) -> torch.Tensor:
        """All images as one (N, C, H, W) tensor."""
        return self._kept if self._kept is not None else torch.stack(list(self))

    def first(self, count: int) -> Images:
        """The first ``count`` of them."""
        most = slice(0, count)
        labels = None if self.labels is None else self.labels[most]
        return replace(
            self, names=self.names[most], labels=labels, _kept=None if self._kept is None else self._kept[most]
        )

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Tensors (up to ``size``, C, H, W) in order; a last batch of one joins the one before it."""
        start = 0
        while start < len(self):
            stop = start + size if len(self) - start - size > 1 else len(self)
            stop = stop if size > 1 else start + 1
            yield torch.stack([self[i] for i in range(start, min(stop, len(self)))])
            start = stop


def load_images(
    source: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool | Progress | None = None,
) -> Images:
    """The images that ``source`` names, made ready by ``preprocessing`` (``LoadedModel.preprocessing``).

    ``source``: ``photos`` (scikit-learn's two photographs), ``digits`` (450 of its 8×8 digits, in [0, 1], which the
    shipped network was not trained on; ``digits:train`` and ``digits:all`` are the others and all 1,797), ``noise``
    (independent standard normal values of the model's input size, 16 images unless ``limit`` says otherwise), one
    image file, or a folder, searched with its subfolders in the order of the names. A folder whose images all lie in
    two or more subfolders is taken as one class per subfolder. ``limit`` draws that many at random from ``seed``, and
    keeps their order. ``progress`` as in ``jacobian_rank``.

    Pictures are read as torchvision and timm do: an animation's first frame, not turned as EXIF data say.

    An image that cannot be used is skipped and named in ``skipped``, and with a ``limit`` another takes its place.
    Raises ``DataError`` when the source does not exist, is empty or unreadable, or when no image is good, and
    ``UsageError`` for a limit below 1.

    >>> from rankscope.loading import plain_preprocessing
    >>> load_images("photos", preprocessing=plain_preprocessing((3, 32, 32)), limit=1).tensor.shape
    torch.Size([1, 3, 32, 32])
    """
    if limit is not None and limit < 1:
        raise UsageError(f"{parameter('limit')} is {limit}; at least one image is needed")
    text = str(source)
    if text == "noise":
        return _noise(preprocessing, limit or _NOISE, seed)
    if text in DIGITS and (preprocessing is None or preprocessing.input_size == (1, 8, 8)):
        return _plain_digits(text, limit, seed)
    pictures = _pictures(text)
    if preprocessing is None:
        raise DataError(
            "the model's input size is not known; let its factory return (module, transform) or give the model an "
            "attribute input_size = (C, H, W)"
        )
    if preprocessing.input_size is not None:
        check_channels(preprocessing.input_size[0])
    with reporting(progress, "images") as report:
        return _prepare(pictures, preprocessing, limit, seed, report)


def check_images(source: str) -> None:
    """Raise ``DataError`` where there are no such images, without a look at them."""
    path = os.path.expanduser(source)
    if source not in ("photos", *DIGITS, "noise") and not os.path.isfile(path) and not os.path.isdir(path):
        raise DataError(f"images {source!r} do not exist; give a folder, a file, or 'photos', 'digits', 'noise'")


def _prepare(found: _Pictures, preprocessing: Preprocessing, limit: int | None, seed: int, report: Reporter) -> Images:
    """Decode every image once, so that all that is bad shows before the long work starts."""
    source, names, opener, labels, class_names, unreadable = found
    wanted = len(names) if limit is None else min(limit, len(names))
    good: dict[int, torch.Tensor | None] = {}
    skipped: dict[int, str] = {}
    shape: tuple[int, ...] | None = preprocessing.input_size
    held = 0
    for index in _order(len(names), limit, seed):
        report(len(good), wanted, "reading images")
        if len(good) >= wanted:
            break
        try:
            tensor = _open(opener, index, preprocessing)
            shape = shape or tuple(tensor.shape)
            if tuple(tensor.shape) != shape:
                raise DataError(f"became {tuple(tensor.shape)}, others {shape}; resize in the transform")
        except DataError as error:
            skipped[index] = str(error)
            continue
        held += tensor.numel() * tensor.element_size()
        good[index] = tensor if held <= _KEEP_BYTES else None
    report(len(good), len(good), "reading images")
    reasons = [*unreadable] + [(names[i], skipped[i]) for i in sorted(skipped)]
    if not good or shape is None:
        shown = "; ".join(f"{name}: {reason}" for name, reason in reasons[:_SHOWN])
        more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise DataError(f"none of the {len(reasons)} images of {source!r} can be used ({shown}{more})")
    order = sorted(good)
    kept = [good[i] for i in order]
    whole = torch.stack([t for t in kept if t is not None]) if held <= _KEEP_BYTES else None
    return Images(
        source=source,
        names=tuple(names[i] for i in order),
        shape=(shape[0], shape[1], shape[2]),
        preprocessing=preprocessing.description,
        labels=None if labels is None else tuple(labels[i] for i in order),
        class_names=None if class_names is None else tuple(class_names),
        skipped=tuple(reasons),
        _kept=whole,
        _load=None if whole is not None else lambda i: _open(opener, order[i], preprocessing),
    )


def _order(count: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    shuffled: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return shuffled


def _open(opener: Callable[[int], Image.Image], index: int, preprocessing: Preprocessing) -> torch.Tensor:
    with _decoding(), opener(index) as image:
        image.load()
        return preprocessing(image)


def read_picture(file: str) -> Image.Image:
    """The picture in a file, decoded and in its own mode: of an animation the first frame, not turned as EXIF says.

    Raises
    ------
    DataError
        For what Pillow cannot read.
    """
    import PIL.Image

    with _decoding(), PIL.Image.open(file) as image:
        image.load()
        return image


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises becomes a ``DataError``; its warnings are not shown."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise DataError("is no image that Pillow can read") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise DataError(f"cannot be read: {first_line(error)}") from error


_ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth")


class _Pictures(NamedTuple):
    """Pictures not decoded yet; ``unreadable`` are subfolders that were passed over, with the reason."""

    source: str
    names: list[str]
    opener: Callable[[int], Image.Image]
    labels: list[int] | None = None
    class_names: list[str] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()


def _pictures(source: str) -> _Pictures:
    import PIL.Image

    if source == "photos":
        from sklearn.datasets import load_sample_images

        data = load_sample_images()
        return _Pictures(source, [Path(f).name for f in data.filenames], lambda i: PIL.Image.fromarray(data.images[i]))
    if source in DIGITS:
        digits = digits_of(source)
        pixels = (digits.images * (255 / 16)).round().astype("uint8")
        names = [f"digit{i:04d}" for i in digits.places]
        labels = digits.labels.tolist()
        return _Pictures(source, names, lambda i: PIL.Image.fromarray(pixels[i]), labels, list("0123456789"))
    path = Path(source).expanduser()
    if os.path.isfile(path):  # false also for a name that is too long for one
        if path.suffix.lower() in _ARRAYS:
            raise DataError(
                f"{source!r} holds arrays, and images are read from picture files; give the array itself to "
                "rankscope.jacobian_rank in Python"
            )
        return _Pictures(source, [printable(path.name)], lambda _: PIL.Image.open(path))
    check_images(source)
    files, unreadable = _files(path)
    labels, class_names = _classes(path, files)
    names = [printable(f.relative_to(path).as_posix()) for f in files]
    return _Pictures(source, names, lambda i: PIL.Image.open(files[i]), labels, class_names, unreadable)


def image_files(folder: str | Path, onerror: Callable[[OSError], object]) -> list[str]:
    """Every image in a folder and in those below it, sorted by path; links are followed, hidden names passed over.

    ``onerror`` gets what keeps a folder from being read.
    """
    found: list[str] = []
    for root, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        here = os.path.join(os.path.realpath(root), "")
        # a link to a folder above would be walked without end
        folders[:] = [
            f
            for f in folders
            if not is_left_behind(f) and not here.startswith(os.path.join(os.path.realpath(os.path.join(root, f)), ""))
        ]
        found += [os.path.join(root, n) for n in names if is_image(n)]
    return sorted(found)


def refuse_unreadable(error: OSError) -> NoReturn:
    """For ``image_files``: a folder that cannot be read is named.

    Raises
    ------
    DataError
    """
    raise DataError(
        f"folder {str(error.filename)!r} cannot be read: {error.strerror}; check who may read it"
    ) from error


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or left by Python, a file system or an archive of macOS.

    >>> is_left_behind(".ipynb_checkpoints"), is_left_behind("@eaDir"), is_left_behind("cat")
    (True, True, False)
    """
    return name.startswith(".") or name in _LEFT_BEHIND


def is_image(path: str) -> bool:
    """Whether a relative path ends as an image's does and no part of it is hidden.

    >>> is_image("a/b.JPG"), is_image("a/._b.jpg"), is_image("a/.cache/b.jpg")
    (True, False, False)
    """
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and not any(map(is_left_behind, path.split(os.sep)))


def printable(name: str) -> str:
    """A file's name as text that every encoding of results takes: bytes that are none become escapes.

    >>> printable("bad" + chr(0xDCFF) + ".png")
    'bad\\\\xff.png'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _files(folder: Path) -> tuple[list[Path], tuple[tuple[str, str], ...]]:
    errors: list[OSError] = []
    found = [Path(file) for file in image_files(folder, errors.append)]
    if not found:
        if errors:
            refuse_unreadable(errors[0])
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            raise DataError(
                f"folder {str(folder)!r} is a saved data set of Hugging Face; give its tensors in Python "
                "(rankscope.jacobian_rank(model, tensors)), or save its pictures as files and give their folder"
            )
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"folder {str(folder)!r} holds no images ({kinds}); give another folder, 'photos' or 'noise'")
    unreadable = tuple(
        (f"{os.path.relpath(e.filename, folder)}/", f"folder cannot be read: {e.strerror}") for e in errors
    )
    return sorted(found), unreadable


def _classes(folder: Path, files: list[Path]) -> tuple[list[int] | None, list[str] | None]:
    parts = [f.relative_to(folder).parts for f in files]
    found = {p[0] for p in parts if len(p) > 1}
    if len(found) < 2 or any(len(p) == 1 for p in parts):
        return None, None
    names = class_order(found).folders
    label = {name: i for i, name in enumerate(names)}
    return [label[p[0]] for p in parts], [printable(name) for name in names]


def _plain_digits(source: str, limit: int | None, seed: int) -> Images:
    digits = digits_of(source)
    order = sorted(_order(len(digits.labels), limit, seed)[: limit or len(digits.labels)])
    return Images(
        source=source,
        names=tuple(f"digit{digits.places[i]:04d}" for i in order),
        shape=(1, 8, 8),
        preprocessing=f"{DIGITS[source]}; pixels in [0, 1]",
        labels=tuple(int(digits.labels[i]) for i in order),
        class_names=tuple("0123456789"),
        _kept=torch.from_numpy(digits.images[order]).to(torch.float32).div_(16).unsqueeze(1),
    )


def _noise(preprocessing: Preprocessing | None, count: int, seed: int) -> Images:
    shape = None if preprocessing is None else preprocessing.input_size
    if shape is None:
        raise DataError("noise needs the model's input size; give the model an attribute input_size = (C, H, W)")
    return Images(
        source="noise",
        names=tuple(f"noise{i:04d}" for i in range(count)),
        shape=shape,
        preprocessing=f"independent standard normal values, seed {seed}",
        _kept=torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)),
    )
