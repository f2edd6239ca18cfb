"""A monitor's numbers against NumPy on features that a hook of the test's own kept, pass by pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from watching import batches, effective_rank, expect, hooks, net, rankme, train

import rankscope as rs


def hooked(model, names):
    """Every output of the named modules in training mode, as the test sees it."""
    kept = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda m, _args, out, name=name: kept[name].append(out.detach().double().numpy()) if m.training else None
        )
    return kept


def test_values_are_those_of_the_hooked_features():
    model = net()
    kept = hooked(model, ["0", "2"])
    with rs.RankMonitor(model, ["0", "2"], every=2) as monitor:
        train(model, monitor, batches(5))
    assert monitor.history["step"].unique().tolist() == [0, 2, 4]
    for step in (0, 2, 4):
        for name in kept:
            expect(monitor.history, step, name, kept[name][step])
    assert monitor.events == []


def test_every_metric_is_the_one_of_its_name():
    names = ("participation_ratio", "stable_rank", "pca_dimension", "variance_dimension_90")
    model = net()
    kept = hooked(model, ["0"])
    with rs.RankMonitor(model, ["0"], every=1, metrics=names) as monitor:
        train(model, monitor, batches(1, samples=40))
    found = monitor.history.set_index("metric")["value"]
    variances = np.linalg.eigvalsh(np.cov(kept["0"][0].T))[::-1]
    eps32 = np.finfo(np.float32).eps
    wanted = {
        "participation_ratio": variances.sum() ** 2 / (variances**2).sum(),
        "stable_rank": variances.sum() / variances[0],
        "pca_dimension": (variances >= eps32 * len(variances) * variances[0]).sum(),
        "variance_dimension_90": np.argmax(np.cumsum(variances) >= 0.9 * variances.sum()) + 1,
    }
    assert wanted["pca_dimension"] == 6  # eight features of six inputs
    for name in names:
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)


def test_feature_maps_are_pooled_over_positions():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    kept = hooked(model, ["0", "2"])
    with rs.RankMonitor(model, "all", every=1) as monitor:
        model(torch.randn(12, 2, 8, 8))
        monitor.step()
    for name in ("0", "2"):
        expect(monitor.history, 0, name, kept[name][0].mean((2, 3)))


def test_accumulated_passes_count_together():
    model = net()
    kept = hooked(model, ["2"])
    with rs.RankMonitor(model, ["2"], every=2) as monitor:
        for group in batches(6).split(3):
            for x in group:
                model(x).sum().backward()
            monitor.step()
    expect(monitor.history, 0, "2", np.concatenate(kept["2"][:3]))


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_a_layer_wider_than_a_batch_counts_every_pass(passes):
    """9 rows a pass of 20 dimensions: all rows are kept at first, and moments once there are more than 20."""
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
    kept = hooked(model, ["0", "2"])
    with rs.RankMonitor(model, ["0", "2"], every=1) as monitor:
        for x in torch.randn(passes, 9, 30, generator=torch.Generator().manual_seed(3)):
            model(x).sum().backward()
        monitor.step()
    assert monitor.history["samples"].unique().tolist() == [9 * passes]
    for name in kept:
        expect(monitor.history, 0, name, np.concatenate(kept[name]))


def test_passes_in_evaluation_mode_do_not_count():
    model = net()
    with rs.RankMonitor(model, ["0"], every=1) as monitor:
        for x in batches(3):
            with torch.no_grad():
                model.eval()(batches(1)[0])
            model.train()
            features = model[0](x).detach()  # a part alone is no pass either
            model(x)
            with torch.no_grad():
                model.eval()(batches(2)[1])
            model.train()
            monitor.step()
    expect(monitor.history, 2, "0", features)


def test_a_pass_that_fails_does_not_count():
    """As where a batch is too large, and the loop catches the error and goes on with a smaller one."""

    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            out = self.net(x)
            if len(x) > 16:
                raise RuntimeError("too large")
            return out

    model = Picky()
    x = batches(1)[0]
    with rs.RankMonitor(model, ["net.0"], every=1) as monitor:
        with pytest.raises(RuntimeError, match="too large"):
            model(torch.cat([x, x]))
        try:
            raise KeyError("x")
        except KeyError:
            model(x)  # while another error is handled
        monitor.step()
    expect(monitor.history, 0, "net.0", model.net[0](x).detach())


def test_a_copy_of_the_model_is_not_watched(tmp_path):
    model = net()
    x, other = batches(2)
    with rs.RankMonitor(model, ["0"], every=1) as monitor:
        before = copy.deepcopy(model)
        model(x)
        within = copy.deepcopy(model)
        torch.save(model, tmp_path / "whole.pt")
        loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        for one in (before, within, loaded, averaged):
            assert torch.equal(one(x), model(x))
            one(other)
        features = torch.cat([x] * 5)  # the model's own passes
        monitor.step()
    expect(monitor.history, 0, "0", model[0](features).detach())
    assert hooks(model) == 0


def test_two_monitors_at_once_see_what_each_would_alone():
    model = net()
    kept = hooked(model, ["0", "2"])
    before = hooks(model)
    one = rs.RankMonitor(model, ["0"], every=2)
    two = rs.RankMonitor(model, ["2"], every=3)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for x in batches(7):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
        one.step()
        two.step()
    one.close()
    two.close()
    assert hooks(model) == before
    assert one.history["step"].unique().tolist() == [0, 2, 4, 6]
    assert two.history["step"].unique().tolist() == [0, 3, 6]
    for monitor, name in ((one, "0"), (two, "2")):
        for step in monitor.history["step"].unique():
            expect(monitor.history, step, name, kept[name][step])


@pytest.mark.filterwarnings("ignore:rankscope, step")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_monitors_of_a_model_compiled_in_place(order):
    model = net()
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    monitors = [rs.RankMonitor(model, [name], every=every) for name, every in (("0", 2), ("2", 3))]
    plain = net()
    for step, x in enumerate(batches(7)):
        wanted = {"0": plain[0](x).detach(), "2": plain(x).detach()}
        model(x)
        for number in order:
            monitors[number].step()
        for monitor, name in zip(monitors, wanted, strict=True):
            if step in monitor.history["step"].values:
                expect(monitor.history, step, name, wanted[name])
    assert [m.history["step"].unique().tolist() for m in monitors] == [[0, 2, 4, 6], [0, 3, 6]]
    for number in order:
        monitors[number].close()
    assert model._compiled_call_impl is compiled


@pytest.mark.filterwarnings("ignore:rankscope, step")
def test_a_wrapper_that_is_watched_is_unwrapped_as_before():
    """By a second monitor, by other measurements, and by a head's that another monitor watches."""
    model = net()
    compiled = torch.compile(model, backend="eager")
    with rs.RankMonitor(compiled, ["0"], every=1) as one, rs.RankMonitor(compiled, ["2"], every=1) as two:
        x = batches(1)[0]
        wanted = {"0": model[0](x).detach(), "2": model(x).detach()}
        compiled(x)
        assert [layer.name for layer in rs.feature_rank(compiled, x, cut_points=["2"])] == ["2"]
        for monitor, name in ((one, "0"), (two, "2")):
            monitor.step()
            expect(monitor.history, 0, name, wanted[name])
    labels = torch.arange(16) % 3
    plain = rs.classification_dimension(x, labels, model[2].weight.new_zeros(3, 6) + torch.eye(3, 6))
    head = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 6))
    with rs.RankMonitor(head, "output", every=1):
        assert rs.classification_dimension(x, labels, head) == plain
    assert hooks(compiled) == 0


def test_a_hook_that_changes_an_output_is_part_of_the_network():
    """Also on the model itself, whose own output is a cut point."""
    model = net()
    for one in (model, model[0]):
        one.register_forward_hook(lambda _m, _args, out: torch.sin(3 * out))
    with rs.RankMonitor(model, ["0", "output"], every=1) as monitor:
        out = model(batches(1)[0]).detach()
        monitor.step()
    expect(monitor.history, 0, "output", out)
    expect(monitor.history, 0, "0", torch.sin(3 * nn.functional.linear(batches(1)[0], *model[0].parameters())).detach())


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Repeats(nn.Module):
    """One layer, called as often as the pass says."""

    def __init__(self):
        super().__init__()
        self.m, self.pair = nn.Linear(6, 6), Pair(6, 6)

    def forward(self, x, times):
        for _ in range(times):
            x = torch.tanh(self.m(self.pair(x)[0]))
        return x


@pytest.mark.filterwarnings("ignore:rankscope, step 0. layer .* several times")
@pytest.mark.parametrize("order", [(1, 2), (2, 1), (3, 3)])
def test_a_name_means_the_first_call_of_every_pass(order):
    """A step's passes may call a layer differently often: rows of one name are then of one call, not of each last."""
    model = Repeats()
    kept = {"m": [], "pair.0": []}
    calls = []
    model.m.register_forward_hook(lambda _m, _args, out: calls.append(out.detach().double().numpy()))
    model.pair.register_forward_hook(lambda _m, _args, out: calls.append(out[0].detach().double().numpy()))
    second = []
    with rs.RankMonitor(model, ["m", "pair.0", "m#1", "m#2"], every=1) as monitor:
        for x, times in zip(batches(2), order, strict=True):
            calls.clear()
            model(x, times)
            kept["pair.0"].append(calls[0])
            kept["m"].append(calls[1])
            second += calls[3:4]
        monitor.step()
    for name in ("m", "m#1", "pair.0"):
        expect(monitor.history, 0, name, np.concatenate(kept[name.removesuffix("#1")]))
    expect(monitor.history, 0, "m#2", np.concatenate(second))


def test_a_layer_that_is_called_several_times_is_told_once():
    model = Repeats()
    with rs.RankMonitor(model, ["m", "m#2"], every=1) as monitor:
        model(batches(1)[0], 2)
        with pytest.warns(UserWarning, match="layer m is called several times in one forward pass, and its first"):
            monitor.step()
        model(batches(1)[0], 2)
        monitor.step()  # warnings are errors here
    with rs.RankMonitor(model, ["m", "output"], every=1) as monitor:
        out = model(batches(1)[0], 1).detach()
        monitor.step()
    expect(monitor.history, 0, "output", out)


@pytest.mark.filterwarnings("ignore:rankscope, step 0. layer 0 is called several times")
@pytest.mark.parametrize("more", [{}, {"inputs": batches(1)[0]}])
def test_a_probe_batch_and_the_training_batch_mean_the_same_call(more):
    """The probe batch's pass adds the other calls, and then numbers them all."""
    model = nn.Sequential(*[nn.Linear(6, 6)] * 3)
    x = batches(1)[0]
    with rs.RankMonitor(model, ["0"], every=1, **more) as monitor:
        model(x)
        monitor.step()
    expect(monitor.history, 0, "0#1" if more else "0", model[0](x).detach())


def test_the_hooks_of_another_stay():
    model = net()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    with rs.RankMonitor(model, ["0"], every=1) as monitor:
        train(model, monitor, batches(2))
    assert (len(seen), hooks(model)) == (2, 1)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])

    def forward(self, x, shift, *, labels=None):
        return self.blocks(x + shift)


@pytest.mark.parametrize("spelling", ["positional", "named", "mixed", "with labels first"])
def test_a_model_of_several_inputs(spelling):
    model = TwoInputs()
    x, shift = batches(2)
    with rs.RankMonitor(model, "blocks.?", every=1) as monitor:
        if spelling == "positional":
            model(x, shift)
        elif spelling == "named":
            model(x=x, shift=shift)
        elif spelling == "mixed":
            model(x, shift=shift)
        else:
            model(labels=torch.arange(16), shift=shift, x=x)
        monitor.step()
    assert monitor.history["layer"].unique().tolist() == ["blocks.0", "blocks.1", "blocks.2"]
    expect(monitor.history, 0, "blocks.0", model.blocks[0](x + shift).detach())


class Tokens(nn.Module):
    """Whole numbers for the tokens, and a mask of numbers with a fraction as torch's attention takes it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask=None):
        h = self.embed(tokens)
        return self.head((h @ h.mT + mask).softmax(-1) @ self.mix(h))


@pytest.mark.parametrize("spelling", [lambda t, m: ((t, m), {}), lambda t, m: ((), {"mask": m, "tokens": t})])
@pytest.mark.parametrize("samples", [6, 12])
def test_a_mask_of_attention_counts_no_samples(spelling, samples):
    torch.manual_seed(3)
    model = Tokens()
    kept = hooked(model, ["mix", "head"])
    args, named = spelling(torch.randint(20, (samples, 9)), torch.full((9, 9), -torch.inf).triu(1))
    with rs.RankMonitor(model, ["mix", "head"], every=1) as monitor:
        model(*args, **named)
        monitor.step()
    assert set(monitor.history["samples"]) == {samples}
    for name, (features,) in kept.items():
        expect(monitor.history, 0, name, features.mean(1))
    with rs.RankMonitor(model, "blocks") as monitor, pytest.raises(rs.CutPointError, match=r"int64 .*name layers"):
        model(*args, **named)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, t, y):
        return self.inner(y) * t


def test_features_may_be_called_as_labels_often_are():
    model, y = Flow(), torch.randn(8, 5)
    kept = hooked(model, ["inner"])
    with rs.RankMonitor(model, ["inner"], every=1) as monitor:
        model(torch.ones(1), y)
        monitor.step()
    expect(monitor.history, 0, "inner", kept["inner"][0])


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])

    def forward(self, mask, src):
        return self.blocks((src @ src.mT + mask).softmax(-1) @ src)


def test_globs_of_a_model_whose_mask_comes_first():
    torch.manual_seed(5)
    model, src = Masked(), torch.randn(7, 4, 6)
    kept = hooked(model, ["blocks.0"])
    with rs.RankMonitor(model, "blocks.?", every=1) as monitor:
        model(torch.full((4, 4), -torch.inf).triu(1), src)
        monitor.step()
    assert monitor.history["layer"].unique().tolist() == ["blocks.0", "blocks.1"]
    expect(monitor.history, 0, "blocks.0", kept["blocks.0"][-1].mean(1))


class Apart(nn.Module):
    """The loop calls encoder and head, never the whole."""

    def __init__(self):
        super().__init__()
        self.encoder, self.heads = net(), nn.ModuleList([nn.Linear(3, 4)])


def test_parts_that_the_loop_calls_one_by_one():
    model = Apart()
    one, two = batches(2)
    with rs.RankMonitor(model, ["encoder.0", "heads.0"], every=1, called="parts") as monitor:
        for view in (one, two):
            model.heads[0](model.encoder(view))
        monitor.step()
        assert hooks(model) == 2 * 3  # the model, the encoder and a head
    assert hooks(model) == 0
    both = torch.cat([one, two])
    expect(monitor.history, 0, "encoder.0", model.encoder[0](both).detach())
    expect(monitor.history, 0, "heads.0", model.heads[0](model.encoder(both)).detach())


def test_globs_of_parts_have_the_names_of_the_whole():
    model = Apart()
    with rs.RankMonitor(model, "encoder.*", every=1, called="parts") as monitor:
        model.encoder(batches(1)[0])
        monitor.step()
    assert monitor.history["layer"].unique().tolist() == ["encoder.0", "encoder.1", "encoder.2"]
    with rs.RankMonitor(model, "heads.*", called="parts"), pytest.raises(rs.CutPointError, match="training calls 'enc"):
        model.encoder(batches(1)[0])


def test_steps_are_counted_from_where_training_says():
    model = net()
    with rs.RankMonitor(model, ["0"], every=10) as monitor:
        for at in (499, 500, 501, 510):
            monitor.begin(at)
            model(batches(1)[0])
            assert (hooks(model) > 0) == (at % 10 == 0)
            monitor.step()
        assert monitor.history["step"].unique().tolist() == [500, 510]
        monitor.begin(500)
        model(batches(1)[0])
        monitor.step(500)
    assert monitor.history["step"].unique().tolist() == [500]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_probe_batch_of_another_type(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    probe = batches(1)[0].to(dtype)
    with rs.RankMonitor(model, ["0", "2"], every=1, inputs=probe) as monitor:
        model(batches(1)[0])
        monitor.step()
    assert model.training
    model.eval()
    with torch.no_grad():
        expect(monitor.history, 0, "0", model[0](probe.float()))
        expect(monitor.history, 0, "2", model(probe.float()))


@pytest.mark.cuda
def test_a_probe_batch_on_another_device():
    model = net().cuda()
    probe = batches(1)[0]
    with rs.RankMonitor(model, ["0"], every=1, inputs=probe) as monitor:
        model(probe.cuda())
        monitor.step()
    features = model.cpu()[0](probe).detach()
    found = monitor.history.set_index("metric")["value"]
    # float32 products on another device: some eps32 on each feature
    assert found["rankme"] == pytest.approx(rankme(features), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-4)


@pytest.mark.filterwarnings("ignore:rankscope, step 0. the model is compiled")
@pytest.mark.parametrize("cut_points", ["blocks", "*", ["0", "2.1"]])
def test_a_compiled_model_has_cut_points(cut_points):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])
    compiled = torch.compile(model, backend="eager")
    x = batches(1)[0]
    with rs.RankMonitor(compiled, cut_points, every=1) as monitor:
        compiled(x)
        monitor.step()
    names = monitor.history["layer"].unique().tolist()
    assert len(names) > 1
    for name in names:
        wanted = x
        for number, part in enumerate(p for block in model for p in block):
            wanted = part(wanted)
            if name in (f"{number // 2}.{number % 2}", *([str(number // 2)] if number % 2 else [])):
                expect(monitor.history, 0, name, wanted.detach())
                break
        else:
            raise AssertionError(name)
