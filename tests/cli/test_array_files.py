"""Arrays of the user's own: what is no class index is refused, never cut to one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file

from rankscope._base.errors import DataError
from rankscope.cli import main
from rankscope.cli.array_files import read_arrays, read_labels
from rankscope.cli.run_data import read_run

N = 6
RIGHT = np.arange(N) % 3


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "small_net.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))\n"
    )
    return f"{tmp_path / 'small_net.py'}:make"


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (RIGHT + 0.4, "float64"),
        (RIGHT.astype(np.float32), "float32"),
        (RIGHT + 1j, "complex128"),
        (RIGHT[:, None], r"int64 of shape \(6, 1\)"),
        (np.full(N, 2**63, np.uint64), "exceed"),
    ],
    ids=["fractions", "floats", "complex", "matrix", "beyond int64"],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_f18_labels_that_are_no_integers_are_refused(tmp_path: Path, labels: np.ndarray, kind: str, suffix: str):
    path = tmp_path / f"run{suffix}"
    values = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    beside = None
    if suffix == ".npz":
        np.savez(path, features=values, labels=labels)
    elif suffix == ".safetensors":
        if labels.dtype == np.complex128:  # safetensors holds the smaller one alone
            labels, kind = labels.astype(np.complex64), "complex64"
        if labels.dtype in (np.complex64, np.uint64) and Version(version("safetensors")) < Version("0.5"):
            pytest.skip("this version of safetensors cannot write these numbers")
        save_file({"features": torch.from_numpy(values), "labels": torch.from_numpy(labels).contiguous()}, path)
    else:
        np.save(path, values)
        beside = tmp_path / "labels.npy"
        np.save(beside, labels)
    with pytest.raises(DataError, match=kind):
        read_run(path, array="features", labels=beside)


def test_f18_a_model_is_not_run_on_labels_that_are_cut(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.random.default_rng(0).standard_normal((N, 4)), labels=RIGHT + 0.4)
    arguments = [net, "--weights", "random", "--data", str(path), "--out", str(tmp_path / "run")]
    assert main(["collect", *arguments]) == 1
    error = capsys.readouterr().err
    assert "data.npz (labels) are float64 of shape (6,)" in error
    assert error.count("\n") == 1
    assert main(["features", *arguments, "--cut-points", "0"]) == 0  # no label counts there


def test_arrays_in_either_byte_order_are_the_same(tmp_path: Path):
    values = np.arange(6, dtype=">i4")
    np.save(tmp_path / "labels.npy", values)
    np.savez(tmp_path / "both.npz", labels=values, inputs=values.astype(">f8"))
    assert read_labels(tmp_path / "labels.npy").tolist() == list(range(6))
    assert read_labels(tmp_path / "both.npz").tolist() == list(range(6))
    assert read_arrays(tmp_path / "both.npz")["inputs"].tolist() == list(range(6))


def test_labels_in_words_are_named(tmp_path: Path):
    np.save(tmp_path / "labels.npy", np.array(["cat", "dog"]))
    with pytest.raises(DataError, match=r"labels\.npy is an array of text \(shape \(2,\)\)"):
        read_labels(tmp_path / "labels.npy")


@pytest.mark.parametrize("damage", ["cut", "no archive", "flipped"])
def test_a_damaged_archive_is_named(damage: str, tmp_path: Path):
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, features=np.random.default_rng(0).standard_normal((60, 5)))
    whole = path.read_bytes()
    middle = len(whole) // 2  # inside the compressed numbers
    held = {
        "cut": whole[:middle],
        "no archive": b"PK\3\4",
        "flipped": whole[:middle] + bytes(64) + whole[middle + 64 :],
    }
    path.write_bytes(held[damage])
    with pytest.raises(DataError, match=r"arrays.npz' cannot be read \(.+\); save it again"):
        read_arrays(path)


def test_a_file_with_more_than_its_header_describes_is_refused(tmp_path: Path) -> None:
    """NumPy reads the first array of two, and fewer rows where the header lost some."""
    with (tmp_path / "two.npy").open("wb") as file:
        np.save(file, np.zeros((2, 3)))
        np.save(file, np.ones((2, 3)))
    whole = tmp_path / "rows.npy"
    np.save(whole, np.zeros((6, 3)))
    whole.write_bytes(whole.read_bytes().replace(b"(6, 3)", b"(4, 3)"))
    for file in (tmp_path / "two.npy", whole):
        with pytest.raises(DataError, match=r"more than the array that its header describes\); save it again"):
            read_arrays(file)
