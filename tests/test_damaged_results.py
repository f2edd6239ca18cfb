"""A saved result of which a byte changed, that was cut short or lost a file, is refused in one line or is the same."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from every_record import MADE

from rankscope._base.errors import OutputError
from rankscope._base.records import Record
from rankscope.features import Collection

_CHANGES = 40  # of each record: with a tenth of the bytes in numbers, some numbers change


def _changed(content: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(content))
    how = rng.randrange(4)
    if how == 0:
        return content[:where]
    if how == 1:
        return content[:where] + content[where + 1 :]
    new = content[where] ^ (1 << rng.randrange(8)) if how == 2 else rng.choice(b"0123456789-.e")
    return content[:where] + bytes([new]) + content[where + 1 :]


def _refused_or_same(one: Record, path: Path) -> bool:
    """Whether it was refused; any other error fails the test."""
    try:
        found = type(one).load(path)
    except OutputError:
        return True
    assert found == one
    return False


@pytest.mark.parametrize("name", MADE)
def test_no_changed_byte_gives_another_result(name: str, tmp_path: Path) -> None:
    one = MADE[name]()
    path = one.save(tmp_path / "result")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
    rng = random.Random(name)
    refused = 0
    for _ in range(_CHANGES):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(_changed(whole, rng))
        refused += _refused_or_same(one, path)
        file.write_bytes(whole)
    assert refused > _CHANGES // 2
    for file in files if path.is_dir() else ():
        whole = file.read_bytes()
        for content in (None, b"", b"[]", b"{}"):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            assert _refused_or_same(one, path)
        file.write_bytes(whole)
    assert type(one).load(path) == one


@pytest.mark.parametrize("name", ["RankPrediction", "FeatureProfile", "JacobianProfile"])
def test_a_file_laid_out_anew_is_the_same_and_one_of_an_earlier_version_needs_no_checksum(
    name: str, tmp_path: Path
) -> None:
    one = MADE[name]()
    path = one.save(tmp_path / "result")
    file = path if path.is_file() else path / "profile.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(data.items())), indent=4))
    assert type(one).load(path) == one
    file.write_text(json.dumps({**data, "more": 1}))
    with pytest.raises(OutputError, match="does not have the checksum"):
        type(one).load(path)
    del data["checksum"]
    file.write_text(json.dumps(data))
    assert type(one).load(path) == one


def test_shards_that_changed_places_are_refused(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from rankscope.features import collect

    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.arange(20) % 2
    made = collect(nn.Sequential(nn.Linear(3, 2)), data, out=tmp_path / "run", shard_size=8, batch_size=4)
    names = [tmp_path / "run" / f"shard-0000{k}.safetensors" for k in (0, 1)]
    shutil.move(names[0], tmp_path / "aside")
    shutil.move(names[1], names[0])
    shutil.move(tmp_path / "aside", names[1])
    with pytest.raises(OutputError, match="written as number"):
        Collection.load(made.folder)
    manifest = made.folder / "manifest.json"
    plain = json.loads(manifest.read_text())
    del plain["checksum"]
    plain["fingerprint"]["setting"] = plain["fingerprint"]["setting"].replace('"pool"', '"flatten"')
    manifest.write_text(json.dumps(plain))
    with pytest.raises(OutputError, match="of another fingerprint"):
        Collection.load(made.folder)
