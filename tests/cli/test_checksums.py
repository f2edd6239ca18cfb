"""What a command writes beside a picture carries a checksum, and what is read back of it is read with the checksum."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rankscope._base.errors import OutputError
from rankscope._base.json_files import read_json
from rankscope.cli import main
from rankscope.features.shards import ShardStore

NET = """
import torch
def made():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
"""


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("checksums")
    (where / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    np.savez(where / "data.npz", x=rng.standard_normal((40, 3)).astype("float32"), y=np.arange(40) % 2)
    model = f"{where / 'net.py'}:made"
    given = ("collect", model, "--weights", "random", "--data", where / "data.npz", "--cut-points", "0")
    assert run(*given, "--out", where / "run") == 0
    return where


def test_every_json_of_a_command_has_a_checksum(folder: Path) -> None:
    """Those of a result, and the one that says what a run was collected of."""
    out = folder / "profiled"
    assert run("clsdim", folder / "run", "--out", folder / "clsdim") == 0
    assert run("profile", "digits", "--images", "digits", "--limit", 1, "--cut-points", "stem.*,pool", "--theory",
               "--out", out) == 0  # fmt: skip
    files = [*(folder / "run").glob("*.json"), folder / "clsdim" / "clsdim.json", *out.glob("*.json")]
    assert {"collection.json", "features.json", "profile.json", "against-random.json"} <= {f.name for f in files}
    for file in files:
        plain = json.loads(file.read_text())
        assert re.fullmatch("[0-9a-f]{32}", plain["checksum"]), file
        plain["schema_version"] = 7
        other = folder / "other.json"
        other.write_text(json.dumps(plain))
        with pytest.raises(OutputError, match="does not have the checksum"):
            read_json(other)


def test_no_changed_byte_of_what_was_collected_names_other_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    file = copy / "collection.json"
    whole = file.read_bytes()
    rng = random.Random(0)
    changed = [whole[: rng.randrange(len(whole))] for _ in range(4)]
    for _ in range(8):
        where = rng.randrange(whole.index(b'"model"'), len(whole))
        changed.append(whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :])
    refused = 0
    for content in (*changed, b"", b"[]", b"null", b"{}"):
        file.write_bytes(content)
        capsys.readouterr()
        if run("clsdim", copy, "--out", tmp_path / "out"):
            error = capsys.readouterr().err
            assert re.fullmatch(r"error: .*collection\.json.*remove it\n", error), error
            refused += 1
        else:  # white space, or the name of the checksum, without which an earlier version wrote the file
            said = json.loads(content)
            assert said.items() >= {k: v for k, v in json.loads(whole).items() if k != "checksum"}.items()
    assert refused > 12


def test_what_belongs_to_other_shards_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class names and model of a run whose shards were collected again elsewhere."""
    assert run("collect", f"{folder / 'net.py'}:made", "--weights", "random", "--data", folder / "data.npz",
               "--limit", "20", "--out", tmp_path / "short") == 0  # fmt: skip
    assert ShardStore.key_in(tmp_path / "short") != ShardStore.key_in(folder / "run")
    shutil.copy(folder / "run" / "collection.json", tmp_path / "short")
    capsys.readouterr()
    assert run("clsdim", tmp_path / "short", "--out", tmp_path / "out") == 1
    assert re.fullmatch("error: .*belongs to another run than the shards beside it; remove it\n",
                        capsys.readouterr().err)  # fmt: skip
    # a file of an earlier version has neither a checksum nor the run that it belongs to
    plain = json.loads((folder / "run" / "collection.json").read_text())
    del plain["checksum"], plain["run"]
    (tmp_path / "short" / "collection.json").write_text(json.dumps(plain))
    assert run("clsdim", tmp_path / "short", "--out", tmp_path / "out") == 0
