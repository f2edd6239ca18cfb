"""The whole analysis: planted dependencies found, absent ones not, scikit-learn as the oracle."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from sklearn.metrics import r2_score

from rankscope._base.errors import OutputError, UsageError
from rankscope._base.facts import FactKind
from rankscope.deficit import DependencyTable, independence_deficit
from rankscope.views.deficit_figure import draw_dependence


@pytest.fixture(scope="module")
def found(planted):
    z, y = planted()
    return independence_deficit(z, y, eta=0.2, class_names=[f"name {i}" for i in range(8)], permutations=4)


def test_planted_dependence_is_recovered(found):
    row = found[0]
    assert row.depends_on[:2] == (1, 2)
    assert row.names[:2] == ("name 1", "name 2")
    assert row.weights[0] > 0 > row.weights[1]
    assert list(map(abs, row.weights)) == sorted(map(abs, row.weights), reverse=True)
    assert row.status == "dependent"
    assert row.r2 > 0.9
    assert row.r2_held_out > 0.9
    assert row.r2_null < 0.3
    assert row.r2_null <= row.r2_null_max
    assert row.r2_null < row.r2_null_limit
    assert row.trivial is None
    assert found.logit_rank == 8
    assert (found.samples, found.held_out_samples) == (480, 120)


def test_everything_agrees_with_scikit_learn_on_a_held_out_set(planted):
    z, y = planted(400)
    z2, y2 = planted(300, seed=9)
    table = independence_deficit(z, y, eta=0.3, held_out=(z2, y2), permutations=0, tol=1e-10)
    assert (table.samples, table.held_out_samples) == (400, 300)
    for i in range(8):
        others = np.arange(8) != i
        fit = Lasso(alpha=0.15, tol=1e-13, max_iter=100_000).fit(z.numpy()[:, others], z.numpy()[:, i])
        row = table[i]
        weights = np.zeros(8)
        weights[list(row.depends_on)] = row.weights
        np.testing.assert_allclose(weights[others], fit.coef_, atol=1e-5)
        guess, guess2 = fit.predict(z.numpy()[:, others]), fit.predict(z2.numpy()[:, others])
        assert row.intercept == pytest.approx(fit.intercept_, abs=1e-5)
        assert row.r2 == pytest.approx(r2_score(z[:, i].numpy(), guess), abs=1e-5)
        assert row.r2_held_out == pytest.approx(r2_score(z2[:, i].numpy(), guess2), abs=1e-5)
        uncentred = 1 - np.mean((z[:, i].numpy() - guess) ** 2) / np.mean(z[:, i].numpy() ** 2)
        assert row.r2_uncentred == pytest.approx(uncentred, abs=1e-5)
        changed = z.clone()
        changed[:, i] = torch.as_tensor(guess)
        right = changed.argmax(1) == y
        assert row.accuracy_replaced == pytest.approx(float(right.double().mean()), abs=0.003)
        assert row.positive_accuracy_replaced == pytest.approx(float(right[y == i].double().mean()), abs=0.021)
        assert row.accuracy == float((z.argmax(1) == y).double().mean())
        assert math.isnan(row.r2_null)


def test_reference_fits_positive_samples_without_an_intercept(planted):
    z, y = planted(240)
    table = independence_deficit(z, y, eta=0.5, samples_used="reference", held_out=0.25, permutations=3, tol=1e-10)
    whole = independence_deficit(z, y, eta=0.5, samples_used="reference", held_out=0, permutations=0, tol=1e-10)
    for i in range(8):
        positive, others = z[y == i].numpy(), np.arange(8) != i
        fit = Lasso(alpha=0.25, fit_intercept=False, tol=1e-13, max_iter=100_000)
        fit.fit(positive[:, others], positive[:, i])
        weights = np.zeros(8)
        weights[list(whole[i].depends_on)] = whole[i].weights
        np.testing.assert_allclose(weights[others], fit.coef_, atol=1e-5)
        guess = fit.predict(positive[:, others])
        assert whole[i].r2 == pytest.approx(r2_score(positive[:, i], guess), abs=1e-5)
        square = np.mean(positive[:, i] ** 2)
        assert whole[i].r2_uncentred == pytest.approx(1 - np.mean((positive[:, i] - guess) ** 2) / square, abs=1e-5)
        assert whole[i].intercept == 0
        assert math.isnan(whole[i].r2_held_out)
        assert math.isfinite(table[i].r2_held_out)
    assert whole.eta == 0.5
    assert independence_deficit(z, y, samples_used="reference").eta == 20


def test_reference_in_several_batches_is_the_same(monkeypatch, planted):
    z, y = planted(240)
    options = {"eta": 0.5, "samples_used": "reference", "permutations": 0}
    one = independence_deficit(z, y, **options)
    monkeypatch.setattr("rankscope.deficit.problem._FACTOR_BYTES", 24 * 8 * 8 * 3)
    many = independence_deficit(z, y, **options)
    assert [r.depends_on for r in one] == [r.depends_on for r in many]
    assert [r.r2 for r in one] == pytest.approx([r.r2 for r in many])


def test_independent_logits_depend_on_nothing(independent):
    z, y = independent(2000, 10)
    for eta in (0.001, 0.02, 10.0):
        table = independence_deficit(z, y, eta=eta)
        assert {r.status for r in table} <= {"not beyond null", "all zero"}
        assert table.deficit(9) == 0
    assert all(r.status == "all zero" and r.n_dependencies == 0 and r.r2 == 0 for r in table)
    assert all(r.eta_over_eta_max > 1 for r in table)


def test_class_means_alone_are_exposed_by_the_null_within_classes(independent):
    z, y = independent(3000, 10, means=2.0)
    strict = independence_deficit(z, y, eta=0.01, permutations=5)
    free = independence_deficit(z, y, eta=0.01, permutations=5, null="free")
    assert min(r.r2 for r in strict) > 0.15  # the label makes them predictable …
    assert {r.status for r in strict} == {"not beyond null"}  # … and the null says so
    assert max(abs(r.r2 - r.r2_null) for r in strict) < 0.05
    assert max(r.r2_null for r in free) < 0.05
    assert {r.status for r in free} == {"dependent"}


def test_the_published_recipe_is_exposed_on_independent_logits(independent):
    """Uncentred R² of positive samples is high on independent logits; centred and held out, nothing is left."""
    z, y = independent(4000, 10)
    z = z + 4 * torch.nn.functional.one_hot(y, 10) + 3
    table = independence_deficit(z, y, eta=1.0, samples_used="reference")
    assert min(r.r2_uncentred for r in table) > 0.7
    assert min(r.r2_uncentred_null for r in table) > 0.7
    assert max(r.r2_held_out for r in table) < 0.2
    assert "dependent" not in {r.status for r in table}


def test_path_is_followed_to_the_largest_eta_that_keeps_accuracy(planted):
    z, y = planted(800, noise=0.3)
    z[:, 0] += 2.0 * (y == 0)  # so that class 0 has an accuracy to keep
    z[:, 3] = z[:, 0] + 0.1 * torch.randn(800, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z[:, 3] -= 0.5
    table = independence_deficit(z, y, path_points=12)
    row = table[0]
    assert table.eta is None
    assert row.status == "dependent"
    assert row.positive_accuracy_replaced >= 0.9 * row.positive_accuracy > 0
    before = row.tried[:-1]
    assert before
    assert all(p.positive_accuracy_replaced < 0.9 * row.positive_accuracy for p in before)
    assert row.eta / row.eta_max == pytest.approx(0.01 ** (len(row.tried) / 12))
    assert row.tried[-1].n_dependencies == row.n_dependencies
    alone = table[5]  # independent of all others
    assert alone.status == "no eta keeps accuracy"
    assert alone.eta_over_eta_max == pytest.approx(0.01)
    path = table.path(0, points=12)
    step = len(row.tried) - 1
    assert path.eta[step] == pytest.approx(row.eta)
    assert path.n_dependencies[step] == row.n_dependencies
    assert path.positive_accuracy_replaced[step] == row.positive_accuracy_replaced
    assert path.r2[step] == pytest.approx(row.r2, abs=1e-5)
    assert path.r2_held_out[step] == pytest.approx(row.r2_held_out, abs=1e-4)
    with pytest.raises(UsageError, match=r"followed only until 0\.9.*keep=0\.95"):
        table.deficit(3, keep=0.95)


def test_deficit_counts_classes_that_few_others_determine(planted):
    z, y = planted(800, noise=0.01)
    z[:, 0] += 4.0 * (y == 0) - 4.0 * (y == 1)
    z[:, 3] = 0.9 * z[:, 0]
    table = independence_deficit(z, y, eta=0.05, permutations=2)
    kept = [r for r in table if r.status == "dependent" and r.fewest(0.9) is not None]
    most = max(r.n_dependencies for r in kept)
    assert kept
    assert table.deficit(most) == len(kept) / 8
    few = min(r.n_dependencies for r in kept)
    assert table.deficit(few) == sum(r.n_dependencies <= few for r in kept) / 8
    assert table.deficit(7, keep=0.01) >= table.deficit(7, keep=0.9)
    with pytest.raises(UsageError, match="k is 0"):
        table.deficit(0)
    with pytest.raises(UsageError, match=r"keep is 1\.5"):
        table.deficit(1, keep=1.5)


def test_trivial_dependence_is_named(planted):
    z, y = planted()
    # what features there are does not matter where the logits depend on nothing
    assert {r.trivial for r in independence_deficit(z, y, eta=0.2, features=z[:, :5], permutations=0)} == {None}
    z[:, 4] = z[:, 5] - z[:, 6]
    low = independence_deficit(z, y, eta=0.2, permutations=0)
    assert low.logit_rank == 7
    assert [r.index for r in low if r.trivial == "logits"] == [4, 5, 6]
    named = independence_deficit(z, y, eta=0.2, feature_dimension=7, permutations=0)
    assert named[4].trivial == "features"
    assert "3 of 8 classes are exact combinations of the others: the features have 7 dimensions for 8" in str(named)
    z, y = planted(40)
    assert independence_deficit(z, y, samples_used="reference", permutations=0, held_out=0)[0].trivial == "samples"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_f15_exact_dependence_is_decided_from_the_other_rows(dtype, level):
    g = torch.Generator().manual_seed(0)
    weight = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=dtype)
    x = torch.randn(2000, 3, generator=g, dtype=torch.float64).to(dtype)
    z = x @ weight.T + level
    table = independence_deficit(z, torch.arange(2000) % 4, eta=0.01, feature_dimension=3, permutations=0)
    assert [r.trivial for r in table] == ["features", "features", None, None]


@pytest.mark.parametrize(("classes", "width"), [(12, 10), (10, 10), (40, 16), (9, 8)])
def test_f15_generic_heads_against_the_rank_of_the_weights(classes, width):
    """NumPy: class i depends exactly where leaving its row out keeps the rank; an intercept absorbs the bias."""
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, width, generator=g)
        if seed % 2:
            weight[2] = weight[3] - 0.5 * weight[4]
        x = torch.randn(1500, width, generator=g)
        z = x @ weight.T + torch.randn(classes, generator=g)
        w = weight.double().numpy()
        rank = np.linalg.matrix_rank(w, tol=1e-5)  # the weights are float32
        truth = [bool(np.linalg.matrix_rank(np.delete(w, i, 0), tol=1e-5) == rank) for i in range(classes)]
        table = independence_deficit(z, torch.arange(1500) % classes, eta=1.0, permutations=0)
        assert [r.trivial is not None for r in table] == truth


@pytest.mark.parametrize("used", ["all", "reference"])
@pytest.mark.parametrize(("classes", "width"), [(4, 3), (6, 4), (8, 7)])
def test_f15_a_bias_of_each_class_counts_where_no_intercept_absorbs_it(classes, width, used):
    """NumPy: with the bias as one more column of the weights there, and without it where an intercept is fitted."""
    kinds = set()
    for seed in range(8):
        g = np.random.default_rng(seed)
        weight = g.integers(-2, 3, (classes, width)).astype(float)
        weight[~weight.any(1), 0] = 1  # a constant logit is refused
        bias = g.normal(size=classes) * (seed % 2)
        z = g.normal(size=(800, width)) @ weight.T + bias
        rows = np.column_stack([weight, bias]) if used == "reference" else weight
        rank = np.linalg.matrix_rank(rows, tol=1e-9)
        truth = [bool(np.linalg.matrix_rank(np.delete(rows, i, 0), tol=1e-9) == rank) for i in range(classes)]
        options = {"samples_used": used, "feature_dimension": width, "permutations": 0, "held_out": 0.0, "eta": 0.1}
        table = independence_deficit(z, np.arange(800) % classes, **options)
        assert [r.trivial is not None for r in table] == truth
        kinds |= set(truth)
    assert True in kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_f7_one_sample_a_class_has_no_null(dtype, seed):
    n = 100
    z = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 4 * torch.eye(n, dtype=dtype)
    table = independence_deficit(z, torch.arange(n))
    assert {r.status for r in table} <= {"no null", "all zero", "no eta keeps accuracy", "not converged"}
    assert table.deficit(n) == 0
    assert re.search(r"^Caution: \d+ classes have no null", str(table), re.MULTILINE)


def test_f7_logits_that_are_the_same_throughout_each_class_have_no_null():
    y = torch.arange(200) % 5
    z = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))[y]
    z[:, 4] = z[:, 0] - z[:, 1]
    table = independence_deficit(z, y, eta=1e-3)
    assert "dependent" not in {r.status for r in table}
    free = independence_deficit(z, y, eta=1e-3, null="free")
    assert free[4].status == "dependent"


def test_f7_a_class_of_one_sample_among_others_of_many():
    """The others have a null within their class, and a planted dependence is still found."""
    generator = torch.Generator().manual_seed(1)
    y = torch.cat([torch.arange(400) % 4, torch.tensor([4])])
    z = torch.randn(401, 5, generator=generator)
    z[:, 3] = z[:, 0] - z[:, 1]
    table = independence_deficit(z, y, eta=1e-3)
    assert table[3].status == "dependent"
    assert table[2].status != "dependent"
    # Rows that no class repeats: no permutation within classes moves anything, for two samples or for fifty
    for n in (2, 50):
        alone = independence_deficit(torch.randn(n, n, generator=generator) + 4 * torch.eye(n), torch.arange(n))
        assert "dependent" not in {r.status for r in alone}


def test_a_class_that_is_not_solved_is_marked(monkeypatch, planted):
    z, y = planted()
    import rankscope.deficit.problem as problem

    solve = problem.solve_lasso
    monkeypatch.setattr(problem, "solve_lasso", lambda *a, **k: solve(*a, **{**k, "tol": 1e-1}))
    table = independence_deficit(z, y, eta=0.05, permutations=0, tol=1e-12)
    assert {r.status for r in table if r.duality_gap > 1e-12} == {"not converged"}
    assert any(r.status == "not converged" for r in table)
    assert table.deficit(7, beyond_null=False) <= sum(r.status != "not converged" for r in table) / 8


def test_table_and_json(found):
    frame = found.table()
    wanted = {"r2", "r2_held_out", "r2_null", "duality_gap", "eta", "eta_over_eta_max", "eta_max", "status", "trivial"}
    assert wanted <= set(frame.columns)
    assert list(frame.index) == list(range(8))
    assert frame.loc[0, "eta_over_eta_max"] == 0.2 / found[0].eta_max
    assert frame.loc[0, "top"].startswith(f"+{found[0].weights[0]:.2f} name 1, -")
    assert float(frame["duality_gap"].max()) <= 1e-6
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    back = DependencyTable.from_dict(data)
    assert back.rows == found.rows
    assert back.to_dict() == data
    assert str(back) == str(found)
    assert "null 'within_class' with 4 permutations" in str(found)
    assert len(found) == 8
    with pytest.raises(UsageError, match="read back without its logits"):
        back.path(0)
    with pytest.raises(OutputError, match="schema 7"):
        DependencyTable.from_dict({**data, "schema_version": 7})
    with pytest.raises(UsageError, match="class 9 is not in this table"):
        found[9]


def test_nan_survives_json(planted):
    z, y = planted()
    table = independence_deficit(z, y, eta=0.2, permutations=0, held_out=0, classes=[3])
    back = DependencyTable.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False)))
    assert math.isnan(back[3].r2_null)
    assert math.isnan(back[3].r2_held_out)


def test_chosen_classes_and_float32_and_seed(planted):
    z, y = planted()
    whole = independence_deficit(z.float(), y.int(), eta=0.2, seed=3, permutations=0)
    part = independence_deficit(z.float().numpy(), y.numpy(), eta=0.2, seed=3, classes=[5, 0], permutations=0)
    assert [r.index for r in part] == [5, 0]
    assert part[0].weights == pytest.approx(whole[0].weights, abs=1e-5)
    assert part[5].r2_held_out == pytest.approx(whole[5].r2_held_out, abs=1e-5)
    again = independence_deficit(z.float(), y, eta=0.2, seed=4, permutations=0)
    assert again[0].r2 != whole[0].r2


def test_path_table(found):
    path = found.path(0, points=6, floor=0.01)
    frame = path.table()
    assert list(frame["eta_over_eta_max"]) == pytest.approx([0.01 ** (k / 6) for k in range(1, 7)])
    assert list(frame["r2"]) == sorted(frame["r2"])
    assert float(frame["duality_gap"].max()) <= 1e-6
    assert path.coefficients.shape == (6, 8)
    assert path.name == "name 0"
    with pytest.raises(UsageError, match="points is 0"):
        found.path(0, points=0)


def test_figure_shows_names_signs_and_what_is_left_out(found, independent):
    texts = [t.get_text() for t in found.plot(0).texts]
    assert {"name 0", "name 1", "name 2"} <= set(texts)
    assert any(t.startswith("+0.") for t in texts)
    assert any(t.startswith("−0.") for t in texts)
    lines = found.plot(0).lines
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert lines[0].get_linewidth() > lines[1].get_linewidth()
    left = found[0].n_dependencies - 1
    assert (
        f"{left} more {'class' if left == 1 else 'classes'} not shown"
        in found.plot(0, most=1).figure.texts[1].get_text()
    )
    z, y = independent(200, 4)
    empty = independence_deficit(z, y, eta=50.0).plot(0)
    assert "all-zero solution" in empty.texts[-1].get_text()
    with pytest.raises(UsageError, match="most is 0"):
        found.plot(0, most=0)


def test_what_rounds_to_zero_has_no_sign(found):
    row = dataclasses.replace(found[0], r2=-0.001, r2_held_out=-0.004, r2_null=-0.006)
    assert "R² 0.00, held out 0.00, null -0.01;" in draw_dependence(row).figure.texts[1].get_text()


def test_without_a_null_nothing_is_called_dependent():
    """Noise: weights of a hundredth, R² of a hundredth, and nothing to compare them with."""
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(150, 3, generator=g), torch.arange(150) % 3
    table = independence_deficit(z, y, eta=1e-3, permutations=0)
    assert {r.status for r in table} == {"no null"}
    with pytest.raises(UsageError, match=r"no permutation null was run.*permutations=5"):
        table.deficit(2, 0.01)
    assert table.deficit(2, 0.01, beyond_null=False) == 1.0
    tested = independence_deficit(z, y, eta=1e-3, permutations=5)
    assert {r.status for r in tested} == {"not beyond null"}


@pytest.mark.parametrize("exponent", [-990, -700, -290, -100, 100, 290, 520, 1000])
@pytest.mark.parametrize("eta", [None, 0.3])
def test_scale_of_the_logits_changes_nothing(planted, exponent, eta):
    """A power of two rounds nothing: weights, R² and status stay, whether float64 holds the squares or not."""
    z, y = planted(240)
    once = independence_deficit(z, y, eta=eta, permutations=2)
    factor = 2.0**exponent
    unit = independence_deficit(z * factor, y, permutations=0).unit
    assert unit in (1.0, 2.0 ** math.floor(math.log2(float(z.abs().max()) * factor)))
    square = (factor / unit) ** 2  # of what the η of the records belong to
    # η in the units of the logits given; where that is no number, the largest or smallest that is asked the same
    given = None if eta is None else eta * factor * factor
    if given is not None and not 0 < given < math.inf:
        return
    found = independence_deficit(z * factor, y, eta=given, permutations=2)
    assert found.logit_rank == once.logit_rank
    for row, before in zip(found, once, strict=True):
        assert (row.status, row.depends_on, row.trivial) == (before.status, before.depends_on, before.trivial)
        assert row.r2 == pytest.approx(before.r2, rel=1e-6)
        assert row.eta / square == pytest.approx(before.eta, rel=1e-9)
        assert row.eta_max / square == pytest.approx(before.eta_max, rel=1e-9)
        np.testing.assert_allclose(row.weights, before.weights, rtol=1e-5)
        assert row.intercept / factor == pytest.approx(before.intercept, rel=1e-5, abs=1e-9)
        assert row.accuracy_replaced == before.accuracy_replaced
    again = DependencyTable.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.unit == unit


def test_a_penalty_beyond_the_range_of_the_logits(planted):
    z, y = planted(240)
    with pytest.raises(UsageError, match=r"eta is 20, which is negligible against the squares of logits that reach"):
        independence_deficit(z * 1e200, y, samples_used="reference")
    assert {row.status for row in independence_deficit(z * 1e-300, y, eta=20)} == {"all zero"}


def test_the_old_name_of_samples_used_is_read(found):
    data = found.to_dict()
    data["convention"] = data.pop("samples_used")
    for newer in ("unit", "accuracy_kind", "notes"):
        del data[newer]
    again = DependencyTable.from_dict(data)
    assert (again.samples_used, again.unit, again.accuracy_kind, again.notes) == ("all", 1.0, "overall", ())


def skewed():
    """94% of the samples in class 0, the others hard to tell apart: little is asked when 90% are to be kept."""
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 376 + [1, 2, 3] * 8)
    z = torch.randn(400, 4, generator=g, dtype=torch.float64) + 4 * torch.nn.functional.one_hot(y, 4)
    return z, y


def test_balanced_accuracy_counts_every_class_alike():
    from sklearn.metrics import balanced_accuracy_score

    z, y = skewed()
    table = independence_deficit(z, y, eta=0.5, accuracy="balanced", permutations=0, held_out=0)
    overall = independence_deficit(z, y, eta=0.5, permutations=0, held_out=0)
    assert table.accuracy_kind == "balanced"
    for row, plain in zip(table, overall, strict=True):
        guess = z.clone()
        guess[:, row.index] = z[:, list(row.depends_on)] @ torch.tensor(row.weights, dtype=z.dtype) + row.intercept
        assert row.accuracy == pytest.approx(balanced_accuracy_score(y, z.argmax(1)), abs=1e-12)
        assert row.accuracy_replaced == pytest.approx(balanced_accuracy_score(y, guess.argmax(1)), abs=1e-12)
        assert plain.accuracy_replaced == pytest.approx(float((guess.argmax(1) == y).double().mean()), abs=1e-12)
        assert row.weights == plain.weights
    with pytest.raises(UsageError, match="accuracy"):
        independence_deficit(z, y, accuracy="balance")


def test_chance_is_named_before_anything_else():
    z, y = skewed()
    asked = independence_deficit(z, y, permutations=1)
    (said,) = asked.facts
    assert (said.kind, said.caution, said["answer"]) == (FactKind.KEPT_BY_CHANCE, True, 0)
    assert said["share"] == pytest.approx(0.94)
    assert str(asked).splitlines()[0].startswith("Caution: Always answering class 0 gives an accuracy of 94.00%")
    assert not independence_deficit(z, y, permutations=1, accuracy="balanced").facts
    shuffled = independence_deficit(z, y.roll(37), permutations=1, eta=0.5)
    assert (shuffled.facts[0].kind, shuffled.facts[0]["of"]) == (FactKind.AT_CHANCE, "logits")
    again = DependencyTable.from_dict(json.loads(json.dumps(shuffled.to_dict())))
    assert again == shuffled
    assert not independence_deficit(*evenly(), permutations=1).facts


def evenly():
    z, y = skewed()
    keep = torch.cat([torch.arange(8), torch.arange(376, 400)])
    return z[keep], y[keep]


def test_what_an_earlier_version_wrote_is_read_and_what_is_damaged_is_refused():
    table = independence_deficit(*evenly(), permutations=1)
    data = json.loads(json.dumps(table.to_dict()))
    earlier = {k: v for k, v in data.items() if k != "facts"} | {"notes": ["accuracy is at chance"]}
    (said,) = DependencyTable.from_dict(earlier).facts
    assert (said.kind, said["text"], said.caution) == (FactKind.EARLIER_NOTE, "accuracy is at chance.", True)
    with pytest.raises(OutputError, match="damaged"):
        DependencyTable.from_dict({**data, "rows": [{"index": 0}]})


def test_the_class_that_is_drawn_by_default_is_the_best_explained_beyond_the_null(tmp_path):
    z, y = evenly()
    table = independence_deficit(z, y, permutations=2)
    best = table.best_explained()
    beyond = [r for r in table if r.status == "dependent"]
    assert best.r2 == max(r.r2 for r in (beyond or table))
    assert table.plot().figure.texts[0].get_text() == table.plot(best.index).figure.texts[0].get_text()
    again = DependencyTable.load(table.save(tmp_path / "deficit.json"))
    with pytest.raises(UsageError, match="read back without its logits"):
        again.path(best.index)


@pytest.mark.parametrize("factor", [1e-100, 1e-30, 1e-15, 1e15, 1e100])
@pytest.mark.parametrize("own", [0, 5])
def test_the_size_of_one_class_decides_nothing_about_exactness(own, factor):
    g = torch.Generator().manual_seed(7)
    z = torch.randn(200, 6, generator=g, dtype=torch.float64)
    z[:, 0] = z[:, 1] - z[:, 2]  # classes 0, 1 and 2 are exact combinations, the others are independent
    y = torch.arange(200) % 6
    plain = independence_deficit(z, y, permutations=0, eta=1e-3)
    z[:, own] *= factor
    found = independence_deficit(z, y, permutations=0)
    exact = [row.trivial is not None for row in found]
    assert exact == [row.trivial is not None for row in plain] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_the_rank_of_the_logits_at_every_scale(scale):
    rng = np.random.default_rng(8)
    z = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 7))
    y = np.arange(300) % 7
    found = independence_deficit(z * scale, y, held_out=0, permutations=0)
    sigma = np.linalg.svd(z - z.mean(0), compute_uv=False)
    assert found.logit_rank == (sigma >= 2.0**-23 * 7 * sigma[0]).sum() == 3
