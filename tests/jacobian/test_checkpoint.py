"""Runs that are stopped, taken up again, damaged or shared: what was kept answers the same question, or is not used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from rankscope._base.errors import OutputError
from rankscope._base.facts import FactKind, of_kind
from rankscope.jacobian import JacobianProfile
from rankscope.jacobian import jacobian_rank as measure

GOLDEN = Path(__file__).parent.parent / "golden-old"


class Cut(nn.Module):
    """Keeps the first k of eight numbers: the rank is k."""

    def __init__(self, k: int = 6) -> None:
        super().__init__()
        self.layer, self.k = nn.Linear(8, 8), k

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x[:, : self.k], torch.zeros_like(x[:, self.k :])], 1))


def cut(k: int = 6) -> Cut:
    torch.manual_seed(0)
    return Cut(k).eval()


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def kinds(profile: JacobianProfile) -> set[FactKind]:
    return {fact.kind for fact in profile.facts}


def same_numbers(one: JacobianProfile, other: JacobianProfile) -> None:
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    for a, b in zip(one.layers, other.layers, strict=True):
        for s, t in zip(a.spectra, b.spectra, strict=True):
            np.testing.assert_allclose(s.singular_values, t.singular_values, rtol=1e-6, atol=1e-9)


def stopped(model: nn.Module, x: Tensor, folder: Path, after: int) -> None:
    def stop(done: int, *_: Any) -> None:
        if done == after:
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        measure(model, x, checkpoint=folder, progress=stop)


def test_j7_a_changed_attribute_is_another_question(tmp_path: Path) -> None:
    model = cut()
    assert measure(model, inputs(), checkpoint=tmp_path).function_rank[-1] == 6
    model.k = 2
    found = measure(model, inputs(), checkpoint=tmp_path)
    assert found.function_rank[-1] == 2
    assert of_kind(found.facts, FactKind.KEPT_OTHER)[0]["count"] == 4
    assert FactKind.READ_BACK not in kinds(found)


def test_r1_an_edited_forward_is_another_question(tmp_path: Path) -> None:
    class Edited(Cut):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2)

    stopped(cut(), inputs(), tmp_path, 2)
    torch.manual_seed(0)
    found = measure(Edited().eval(), inputs(), checkpoint=tmp_path)
    assert FactKind.READ_BACK not in kinds(found)
    plain, twice = measure(cut(), inputs()), found
    ratio = twice.layers[-1].spectra[0].singular_values[:6] / plain.layers[-1].spectra[0].singular_values[:6]
    np.testing.assert_allclose(ratio, 2, rtol=1e-5)


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_stopped_run_says_what_it_read_back(tmp_path: Path, after: int) -> None:
    stopped(cut(), inputs(), tmp_path, after)
    kept = len(list(tmp_path.glob("image-*")))
    found = measure(cut(), inputs(), checkpoint=tmp_path)
    whole = measure(cut(), inputs())
    same_numbers(found, whole)
    (fact,) = of_kind(found.facts, FactKind.READ_BACK)
    assert (fact["kept"], fact["total"]) == (kept, 4)
    assert found.method == whole.method
    assert found.certificate == whole.certificate
    assert found.kinks == whole.kinks
    assert any("read back from an earlier run" in line for line in found.notes)
    assert "read back from an earlier run" in str(found)
    assert JacobianProfile.load(found.save(tmp_path / "p")).facts == found.facts


class Wrong(torch.autograd.Function):
    """A backward that is wrong by a factor of two, beside a forward-mode rule that is right."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 6

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t * 3

    generate_vmap_rule = True


class Wrongly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


def disagrees() -> nn.Module:
    return nn.Sequential(Wrongly()).eval()


def test_r2_what_was_found_out_stays_with_what_was_kept(tmp_path: Path) -> None:
    first = measure(disagrees(), inputs(), checkpoint=tmp_path)
    assert FactKind.REVERSE_DISAGREES in kinds(first)
    again = measure(disagrees(), inputs(), checkpoint=tmp_path)
    assert kinds(again) == kinds(first) | {FactKind.READ_BACK}
    assert len(of_kind(again.facts, FactKind.REVERSE_DISAGREES)) == 1
    assert (again.method, again.certificate) == (first.method, first.certificate)
    assert again.adjoint_error == pytest.approx(first.adjoint_error)
    with safe_open(tmp_path / "image-000003.safetensors", "numpy") as file:
        kept = json.loads(file.metadata()["about"])["facts"]
    assert [fact["kind"] for fact in kept] == [fact.kind.value for fact in first.facts]


def test_kept_images_that_do_not_repeat_are_all_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an edit that the identity cannot see: a variable whose name is made as it runs."""

    class Hidden(Cut):
        def forward(self, x: Tensor) -> Tensor:
            import os

            return super().forward(x * float(os.environ["factor".upper()]))

    def run() -> JacobianProfile:
        torch.manual_seed(0)
        return measure(Hidden().eval(), inputs(), checkpoint=tmp_path)

    monkeypatch.setenv("FACTOR", "1")
    run()
    monkeypatch.setenv("FACTOR", "1.001")
    found = run()
    assert FactKind.READ_BACK not in kinds(found)
    (fact,) = of_kind(found.facts, FactKind.KEPT_DIFFERS)
    assert fact.caution
    assert fact["where"] == "sample 0"
    same_numbers(found, run())
    assert FactKind.KEPT_DIFFERS not in kinds(run())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    measure(cut(), inputs(2), checkpoint=folder)
    return folder


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_r4_a_damaged_image_is_measured_again(kept: Path, tmp_path: Path, where: float, bit: int) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    file = folder / "image-000001.safetensors"
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    file.write_bytes(content)
    found = measure(cut(), inputs(2), checkpoint=folder)
    same_numbers(found, measure(cut(), inputs(2)))


def test_r4_zeroed_numbers_in_a_whole_file_are_measured_again(kept: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(kept, tmp_path / "copy")
    file = tmp_path / "copy" / "image-000001.safetensors"
    with safe_open(file, "numpy") as stored:
        about = stored.metadata()
    save_file({name: value * 0 for name, value in load_file(file).items()}, file, about)
    found = measure(cut(), inputs(2), checkpoint=tmp_path / "copy")
    assert found.function_rank[-1] == 6
    assert of_kind(found.facts, FactKind.KEPT_DAMAGED)[0]["count"] == 1


@pytest.mark.parametrize("content", [b"", b"nonsense" * 20, None])
def test_r8_an_empty_or_half_written_image_is_measured_again(kept: Path, tmp_path: Path, content: bytes | None) -> None:
    shutil.copytree(kept, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("image-*"):
        file.write_bytes(file.read_bytes()[:40] if content is None else content)
    found = measure(cut(), inputs(2), checkpoint=tmp_path / "copy")
    assert of_kind(found.facts, FactKind.KEPT_DAMAGED)[0]["count"] == 2
    assert kinds(measure(cut(), inputs(2), checkpoint=tmp_path / "copy")) == {FactKind.READ_BACK}


def test_kept_images_of_an_earlier_version_are_measured_again(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "images", tmp_path / "copy")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).eval()
    found = measure(net, torch.randn(2, 6), checkpoint=tmp_path / "copy")
    assert found.function_rank == (5, 5, 4)
    assert FactKind.KEPT_DAMAGED in kinds(found)


RUNNER = """
import sys, torch
from torch import nn
from rankscope.jacobian import jacobian_rank
def wait(done, *_):
    if done == 1:
        print("measuring", flush=True)
        sys.stdin.readline()
torch.manual_seed(0)
found = jacobian_rank(nn.Sequential(nn.Linear(8, 3)).eval(), torch.randn(3, 8), checkpoint=sys.argv[1], progress=wait)
print(found.function_rank[-1], flush=True)
"""


def test_r10_two_runs_keep_out_of_each_others_folder(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "measuring\n"
    with pytest.raises(OutputError, match=rf"in use by another run \(process {other.pid}\); wait until it ends"):
        measure(cut(), inputs(), checkpoint=tmp_path)
    assert other.communicate("\n")[0] == "3\n"
    assert measure(cut(), inputs(), checkpoint=tmp_path).function_rank[-1] == 6


def test_a_file_that_appears_under_a_name_of_this_run_is_refused(kept: Path, tmp_path: Path) -> None:
    def intrude(done: int, *_: Any) -> None:
        shutil.copy(kept / "image-000001.safetensors", tmp_path / "image-000003.safetensors")

    from rankscope.jacobian.batch import BatchMeasurer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchMeasurer, "batch_size", _one_at_a_time(BatchMeasurer.batch_size))
        with pytest.raises(OutputError, match=r"image-000003.safetensors' appeared while .* a folder of its own"):
            measure(cut(), inputs(), checkpoint=tmp_path, progress=intrude)


def _one_at_a_time(plain: Any) -> Any:
    def size(*arguments: Any) -> int:
        plain(*arguments)
        return 1

    return size


# ---- profiles --------------------------------------------------------------------------------------------------------


def test_r3_files_of_two_runs_are_not_read_as_one(tmp_path: Path) -> None:
    one, two = measure(cut(), inputs()), measure(cut(2), inputs())
    one.save(tmp_path / "a")
    two.save(tmp_path / "b")
    for name in ("profile.json", "profile.safetensors"):
        mixed = tmp_path / f"mixed {name} of b"
        shutil.copytree(tmp_path / "a", mixed)
        shutil.copy(tmp_path / "b" / name, mixed / name)
        with pytest.raises(OutputError, match="written by different runs; measure again"):
            JacobianProfile.load(mixed)
    assert JacobianProfile.load(tmp_path / "a").function_rank == one.function_rank


def test_r3_an_earlier_versions_file_does_not_go_with_a_new_one(tmp_path: Path) -> None:
    for name in ("profile.json", "profile.safetensors"):
        mixed = measure(cut(), inputs()).save(tmp_path / f"mixed {name} of old")
        shutil.copy(GOLDEN / "profile" / name, mixed / name)
        with pytest.raises(OutputError, match="written by different runs"):
            JacobianProfile.load(mixed)


def test_a_profile_of_an_earlier_version_loads() -> None:
    found = JacobianProfile.load(GOLDEN / "profile")
    assert found.function_rank == (5, 5, 4)
    assert found.images == ("sample 0", "sample 1")
    assert all(s is not None and s.rank("paper").certified for layer in found.layers for s in layer.spectra)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_r3_a_flipped_bit_in_the_spectra_is_refused(profile: Any, tmp_path: Path, where: float, bit: int) -> None:
    folder = profile.save(tmp_path / "p")
    content = bytearray((folder / "profile.safetensors").read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (folder / "profile.safetensors").write_bytes(content)
    try:
        found = JacobianProfile.load(folder)
    except OutputError:
        return
    same_numbers(found, profile)  # a blank of the header became another


@pytest.fixture(scope="module")
def profile() -> JacobianProfile:
    return measure(cut(), inputs(2))


def test_r7_a_name_that_is_no_unicode_is_saved_and_comes_back(tmp_path: Path) -> None:
    found = measure(cut(), inputs(2), names=lambda i: f"bad\udcff{i}.png", checkpoint=tmp_path / "k")
    assert JacobianProfile.load(found.save(tmp_path / "p")).images == ("bad\udcff0.png", "bad\udcff1.png")
