"""Scaling laws: known laws are recovered, and intervals contain the truth in simulated comparisons."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from lit_transfusion.errors import InputError
from lit_transfusion.studies.scaling import bootstrap
from lit_transfusion.studies.scaling.bootstrap import interval, resampled_log_losses
from lit_transfusion.studies.scaling.held_out import predict_largest
from lit_transfusion.studies.scaling.iso_flop import fit_iso_flop
from lit_transfusion.studies.scaling.parity import fit_trend, frontier, parity_ratio
from lit_transfusion.studies.scaling.points import Point, levels, read_points, write_points
from lit_transfusion.studies.scaling.power_law import (
    BOUNDS,
    PowerLaw,
    centred,
    fit_power_law,
    gauss_newton,
    objective,
    refit_power_law,
)

LAW = PowerLaw(E=0.6, A=40.0, alpha=0.35, B=60.0, beta=0.3)
SIZES = {"nano": 1e6, "micro": 2.5e6, "mini": 6e6, "small": 1.5e7}
BUDGETS = (1e14, 4e14, 1.6e15)


def comparison(loss, noise=0.0, random=None, seeds=3, sizes=SIZES, budgets=BUDGETS, model="ours", grid=False):
    """The points of a model: each run passes all budgets, or with `grid`, each budget has runs of its own.

    Args:
        loss: N, D → the loss without noise.
        noise: Standard deviation of the log loss between runs; that between points of a run is 0.3 of it.
        seeds: The number of seeds, or one for each size.
    """
    random = random or np.random.default_rng(0)
    points = []
    for i, (size, parameters) in enumerate(sizes.items()):
        for seed in range(seeds if isinstance(seeds, int) else seeds[i]):
            of_run = noise * random.normal()
            for flops in budgets:
                of_run = noise * random.normal() if grid else of_run
                tokens = flops / 6 / parameters
                value = loss(parameters, tokens) * np.exp(of_run + 0.3 * noise * random.normal())
                run = f"{model}-{size}-{seed}" + (f"-{flops:.0e}" if grid else "")
                points.append(Point(model, size, seed, run, parameters, tokens, flops, {"bits": float(value)}))
    return points


def line(factor, exponent, saved=1.0):
    """A loss that depends on FLOPs alone; `saved` is the share of FLOPs that this model needs."""
    return lambda parameters, tokens: factor * (6 * parameters * tokens / saved) ** exponent


def shares_inside(simulate, trials):
    """How often each interval contains the truth: name → share. `simulate` gives name → (interval, truth)."""
    random = np.random.default_rng(0)
    hits = [{k: v.low <= truth <= v.high for k, (v, truth) in simulate(random).items()} for _ in range(trials)]
    return {name: np.mean([hit[name] for hit in hits]) for name in hits[0]}


# Points


def test_points_are_read_exactly_as_they_were_written(tmp_path):
    random = np.random.default_rng(0)
    first = Point("ours", 'a "small", one', 3, "run, 1", 1e6 / 3, float(random.random()), 1e300, {"bits": 0.1 + 0.2})
    diverged = Point("theirs", "é", 0, "run 2", 1.0, 2.0, 3.0, {"fid": float("inf"), "clip": -0.25})
    write_points([first, diverged], tmp_path / "points.csv")
    assert read_points(tmp_path / "points.csv") == [first, diverged]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ours,nano,x,r,1,2,3,0.5", "line 2, column seed: 'x' is invalid; write an integer"),
        ("ours,nano,0,r,1,many,3,0.5", "line 2, column tokens: 'many' is not a number"),
        ("ours,nano,0,r,-1,2,3,0.5", "line 2, column parameters: '-1' is invalid; write a finite number above 0"),
        ("ours,nano,0,r,1,2,,0.5", "line 2, column flops: '' is invalid"),
        ("ours,nano,0,r,1,2,3,low", "line 2, column bits: 'low' is not a number"),
        ("ours,nano,0,r,1,2,3", "line 2 has 7 cells, but line 1 has 8 columns"),
    ],
)
def test_error_of_a_bad_file_names_the_line_and_the_column(tmp_path, line, message):
    path = tmp_path / "points.csv"
    path.write_text(f"model,size,seed,run,parameters,tokens,flops,bits\n{line}\n")
    with pytest.raises(InputError) as error:
        read_points(path)
    assert str(error.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize("header", ["", "model,size,seed\n", "model,size,seed,run,parameters,tokens,flops,bits,bits\n"])
def test_error_of_a_bad_header_names_the_columns(tmp_path, header):
    path = tmp_path / "points.csv"
    path.write_text(header)
    with pytest.raises(InputError, match="line 1: the columns must be model,size,seed,run,parameters,tokens,flops"):
        read_points(path)


def test_numbers_that_are_almost_equal_are_of_one_level():
    assert levels([3.0, 1.0, 1.009, 2.0, 1.011]).tolist() == [3, 0, 0, 2, 1]
    assert levels([1.0, 1.2, 2.0], tolerance=0.25).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0.0"), (-1.0, "-1.0"), (float("nan"), "nan"), (float("inf"), "inf")]
)
@pytest.mark.parametrize("fit", [fit_power_law, fit_trend, fit_iso_flop, predict_largest])
def test_number_without_a_logarithm_is_an_error(fit, value, said):
    points = comparison(LAW.predict)
    points[4] = points[4]._replace(losses={"bits": value})
    with pytest.raises(InputError, match=f"run ours-nano-1: bits is {said}, which has no logarithm; leave the run out"):
        fit(points, "bits")


def test_missing_columns_other_models_and_no_points_are_errors():
    points = comparison(LAW.predict)
    with pytest.raises(InputError, match="run ours-nano-0: the column 'fid' is missing, use one of: bits"):
        fit_trend(points, "fid")
    with pytest.raises(InputError, match="the points of one model, but found ours, theirs"):
        fit_trend(points + comparison(LAW.predict, model="theirs"), "bits")
    with pytest.raises(InputError, match="the points of one model, but found no points"):
        fit_trend([], "bits")


# Resamples


def test_resamples_have_the_variance_of_the_mean_of_runs():
    """Of t with 8 degrees of freedom, at one point and between the points of a run."""
    random = np.random.default_rng(1)
    points = comparison(line(8, -0.06), 0.01, random)
    logs = np.log([point.losses["bits"] for point in points]).reshape(4, 3, 3)  # size, seed, budget
    residuals = logs - logs.mean(1, keepdims=True)
    bootstrap_logs = np.concatenate([resampled_log_losses(points, "bits", random) for _ in range(20)])
    drawn = bootstrap_logs.reshape(-1, 4, 3, 3) - logs.mean(1, keepdims=True)
    expected = np.einsum("sri,srj->ij", residuals, residuals) / 8 * 8 / 6  # variance of t is 8 / 6
    assert np.einsum("bsri,bsrj->ij", drawn, drawn) / (len(drawn) * 12) == pytest.approx(expected, rel=0.05)
    of_two_runs = np.einsum("bsi,bsj->ij", drawn[:, :, 0], drawn[:, :, 1]) / (len(drawn) * 4)
    assert np.abs(of_two_runs).max() < 0.05 * expected.max()


def test_size_with_one_seed_gets_the_noise_of_the_others():
    points = comparison(line(8, -0.06), 0.01, seeds=(3, 3, 3, 1))
    points.append(points[0]._replace(run="stopped", losses={"bits": 1.0}))  # only one of three points
    spread = resampled_log_losses(points, "bits", np.random.default_rng(0)).std(0)
    assert spread == pytest.approx(np.full(len(points), spread.mean()), rel=0.2) and spread.min() > 0.005


def test_without_repeats_there_is_no_interval():
    points = comparison(LAW.predict, 0.003, seeds=1)
    assert resampled_log_losses(points, "bits", np.random.default_rng(0)).shape == (0, 12)
    better = comparison(LAW._replace(E=0.55).predict, 0.003, model="theirs")
    assert parity_ratio(points, better, "bits", "less").interval is None
    found = fit_iso_flop(points, "bits")
    assert found.interval is None and found.budgets[0].interval is None
    assert predict_largest(points, "bits").interval is None


# Power law


def test_power_law_is_recovered():
    assert fit_power_law(comparison(LAW.predict, seeds=1), "bits") == pytest.approx(LAW, rel=1e-6)


@pytest.mark.parametrize("law", [PowerLaw(1.69, 406.4, 0.34, 410.7, 0.28), PowerLaw(0.15, 5.0, 0.7, 9e3, 0.8)])
def test_power_law_of_other_scales_is_recovered(law):
    """Hoffmann et al.'s law at their sizes, and an image loss that falls fast."""
    sizes = {f"{n:.0e}": n for n in ((1e8, 4e8, 1.6e9, 6.4e9) if law.E > 1 else (3e5, 1e6, 3e6))}
    points = comparison(law.predict, sizes=sizes, budgets=(1e19, 1e20, 1e21) if law.E > 1 else BUDGETS, seeds=1)
    assert fit_power_law(points, "bits") == pytest.approx(law, rel=1e-3)


def test_power_law_is_near_with_noise():
    law = fit_power_law(comparison(LAW.predict, 0.001), "bits")
    assert law.alpha == pytest.approx(0.35, abs=0.05) and law.beta == pytest.approx(0.3, abs=0.01)
    assert law.predict(3e7, 5e8) == pytest.approx(LAW.predict(3e7, 5e8), rel=0.01)


def test_best_parameters_have_the_lowest_loss():
    """Equation 4 of Hoffmann et al."""
    sizes = np.geomspace(1e6, 1e8, 20001)
    for flops in (1e15, 1e17):
        lowest = sizes[LAW.predict(sizes, flops / 6 / sizes).argmin()]
        assert LAW.best_parameters(flops) == pytest.approx(lowest, rel=1e-3)
    assert LAW.best_parameters(1e17) / LAW.best_parameters(1e15) == pytest.approx(100**LAW.exponent)


def problem(noise=0.01):
    """Sizes and log losses of a fit."""
    points = comparison(LAW.predict, noise)
    return points, centred(points), np.log([point.losses["bits"] for point in points])


def test_gradient_of_the_objective_equals_finite_differences():
    _, sizes, logs = problem()
    for seed in range(5):
        theta = np.random.default_rng(seed).normal([-1, 0.5, -1, 0.5, -0.5], 0.3)
        differences = approx_fprime(theta, lambda theta: objective(theta, sizes, logs)[0], 1e-7)
        assert objective(theta, sizes, logs)[1] == pytest.approx(differences, rel=1e-4, abs=1e-4)


def test_no_start_of_hoffmanns_grid_finds_a_better_optimum():
    points, sizes, logs = problem()
    mean_n, mean_d = np.log([[point.parameters, point.tokens] for point in points]).mean(0)
    law = fit_power_law(points, "bits")
    ours = np.abs(np.log([law.predict(point.parameters, point.tokens) for point in points]) - logs).sum()
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = random.choice([0, 5, 10, 15, 20, 25], 2)
        alpha, beta, e = *random.choice([0, 0.5, 1, 1.5, 2], 2), random.choice([-1, -0.5, 0, 0.5, 1])
        start = [a - alpha * mean_n, alpha, b - beta * mean_d, beta, e]
        theirs = minimize(objective, start, (sizes, logs), "L-BFGS-B", jac=True, bounds=BOUNDS)
        assert ours <= theirs.fun + 36 * 0.5e-3 + 1e-6  # the Huber loss over delta is at most delta / 2 below


def test_all_resamples_together_reach_the_optima_of_each():
    points, sizes, _ = problem(0.003)
    drawn = resampled_log_losses(points, "bits", np.random.default_rng(0))[:6]
    start = np.array([-1.0, 0.35, -1.0, 0.3, -0.5])
    thetas, values = gauss_newton(np.tile(start, (6, 1)), sizes, drawn)
    for theta, value, one in zip(thetas, values, drawn, strict=True):
        alone = minimize(objective, start, (sizes, one), "L-BFGS-B", jac=True, bounds=BOUNDS, options={"ftol": 1e-12})
        assert value == pytest.approx(objective(theta, sizes, one)[0]) and value <= alone.fun * (1 + 1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (comparison(LAW.predict, sizes={"a": 1e6, "b": 2e6}), "found 2 sizes, .* use at least 3 sizes"),
        (
            comparison(LAW.predict, budgets=[1e14]),
            "found 4 sizes, 4 token counts, .* 4 size-and-token pairs; .* 5 size-and-token pairs",
        ),
        (
            [
                Point("ours", str(n), 0, str(n), n, 20 * n, 120 * n * n, {"bits": LAW.predict(n, 20 * n)})
                for n in np.geomspace(1e6, 1e8, 6)
            ],
            "found 6 sizes, 6 token counts, 1 token-to-parameter ratio, 6 size",
        ),
    ],
)
def test_too_few_points_for_a_power_law_are_named(points, message):
    with pytest.raises(InputError, match=rf"too few points for E \+ A / N\^alpha \+ B / D\^beta: {message}"):
        fit_power_law(points, "bits")


# Minima at equal FLOPs


def test_minimum_at_equal_flops_is_that_of_the_closed_form():
    """Equation 4 of Hoffmann et al. A parabola is exact in the limit of sizes that are near the minimum."""
    points = []
    for flops in BUDGETS:
        best = LAW.best_parameters(flops)
        sizes = {str(i): best * factor for i, factor in enumerate((0.9, 0.95, 1.0, 1.05, 1.1))}
        points += comparison(LAW.predict, sizes=sizes, budgets=[flops], seeds=1)
    found = fit_iso_flop(points, "bits")
    for budget, flops in zip(found.budgets, BUDGETS, strict=True):
        assert budget.inside and budget.flops == pytest.approx(flops)
        assert budget.parameters == pytest.approx(LAW.best_parameters(flops), rel=1e-2)
        assert budget.loss == pytest.approx(LAW.predict(budget.parameters, flops / 6 / budget.parameters), rel=1e-4)
    assert found.exponent == pytest.approx(LAW.exponent, rel=1e-3)
    assert found.best_parameters(1e17) == pytest.approx(LAW.best_parameters(1e17), rel=2e-2)


def bowl(parameters, tokens):
    """A loss whose minimum is exactly at N = sqrt(C) / 10, and a parabola."""
    flops = 6 * parameters * tokens
    return flops**-0.05 * 8 + 0.05 * np.log(parameters / (np.sqrt(flops) / 10)) ** 2


def test_parabola_is_recovered_and_its_minimum_may_be_outside():
    points = comparison(bowl, budgets=(1e14, 4e14, 1.6e15, 1e17))
    found = fit_iso_flop(points, "bits")
    assert [budget.inside for budget in found.budgets] == [False, True, True, False]  # N is 1e6, ..., 3e7
    assert (found.exponent, found.coefficient) == pytest.approx((0.5, 0.1), rel=1e-6)
    assert found.budgets[3].parameters == pytest.approx(np.sqrt(1e17) / 10)


def test_points_of_almost_equal_flops_are_one_budget():
    points = [point._replace(flops=point.flops * (1 + 0.02 * (i % 2))) for i, point in enumerate(comparison(bowl))]
    assert len(fit_iso_flop(points, "bits", tolerance=0.03).budgets) == 3
    assert len(fit_iso_flop(points, "bits").budgets) == 6


def test_budget_without_a_minimum_is_outside():
    """The parabola opens downwards at one budget; its lower end is not a minimum."""

    def loss(parameters, tokens):
        upwards = 6 * parameters * tokens < 5e15
        return bowl(parameters, tokens) if upwards else 1 - 0.05 * np.log(parameters / 3e6) ** 2

    found = fit_iso_flop(comparison(loss, budgets=(4e14, 1.6e15, 6.4e15)), "bits")
    assert not found.budgets[2].inside and found.budgets[2].parameters == pytest.approx(1.5e7)
    assert found.exponent == pytest.approx(0.5)


def test_too_few_sizes_or_minima_are_errors():
    with pytest.raises(InputError, match=r"too few sizes at 1e\+14 FLOPs: found 2, but a parabola needs at least 3"):
        fit_iso_flop(comparison(LAW.predict, sizes={"a": 1e6, "b": 2e6}), "bits")
    with pytest.raises(InputError, match=r"minimum inside the sizes tried at 1 budget, .* N = 3.16e\+07 at 1e\+17"):
        fit_iso_flop(comparison(bowl, budgets=(4e14, 1e17)), "bits")


# Parity


@pytest.mark.parametrize(("direction", "exponent"), [("less", -0.06), ("more", 0.2)])
@pytest.mark.parametrize("saved", [0.3, 0.8, 3.0])
def test_parity_ratio_is_recovered(direction, exponent, saved):
    baseline, challenger = (comparison(line(8, exponent, one), model=str(one)) for one in (1.0, saved))
    found = parity_ratio(baseline, challenger, "bits", direction)
    assert found.ratio == pytest.approx(saved) and found.at == 1.6e15
    assert found.value == pytest.approx(line(8, exponent)(1e6, 1.6e9 / 6))
    assert found.extrapolated == (saved == 3.0)
    assert parity_ratio(baseline, challenger, "bits", direction, at=3e14).extrapolated == (saved == 0.3)
    assert parity_ratio(baseline, challenger, "bits", direction, at=2e15).extrapolated


def test_parity_ratio_of_lines_that_are_not_parallel_depends_on_flops():
    baseline, challenger = comparison(line(8, -0.06)), comparison(line(20, -0.09))
    for flops in (1e14, 1e15):
        needed = (20 / (8 * flops**-0.06)) ** (1 / 0.09)
        assert parity_ratio(baseline, challenger, "bits", "less", flops).ratio == pytest.approx(needed / flops)


def test_model_has_parity_with_itself_inside_its_points():
    points = comparison(line(8, -0.06), 0.003)
    found = parity_ratio(points, points, "bits", "less")
    assert found.ratio == pytest.approx(1) and found.interval.low < 1 < found.interval.high and not found.extrapolated


def test_interval_of_a_trend_that_may_be_flat_is_infinite():
    baseline, challenger = (comparison(line(8, -0.0003), 0.01, np.random.default_rng(i)) for i in (1, 3))
    found = parity_ratio(baseline, challenger, "bits", "less")
    assert found.interval.low < found.ratio < found.interval.high == np.inf


def test_errors_of_parity():
    points = comparison(line(8, -0.06))
    with pytest.raises(InputError, match=r"bits of ours does not improve with FLOPs: its trend is FLOPs\^-0.06; use"):
        parity_ratio(points, points, "bits", "more")
    with pytest.raises(InputError, match=r"2 or more FLOPs, but all points have about 1e\+14"):
        parity_ratio(points, comparison(line(8, -0.06), budgets=[1e14]), "bits", "less")
    with pytest.raises(InputError, match="direction 'neither' is invalid: use more or less"):
        parity_ratio(points, points, "bits", "neither")


def test_frontier_keeps_what_is_not_beaten_by_the_mean_of_runs():
    points = comparison(bowl, 0.001)
    found = {(point.size, point.flops) for point in frontier(points, "bits", "less")}
    assert found == {("nano", 1e14), ("micro", 4e14), ("mini", 1.6e15)}
    assert len(frontier(points, "bits", "less")) == 9  # all seeds
    turned = [point._replace(losses={"bits": 1 / point.losses["bits"]}) for point in points]
    assert {(point.size, point.flops) for point in frontier(turned, "bits", "more")} == found
    assert fit_trend(frontier(points, "bits", "less"), "bits").slope == pytest.approx(-0.05, abs=0.005)


# The largest runs


def test_largest_runs_are_predicted_by_the_law_of_the_others():
    points = comparison(LAW.predict, seeds=1)
    found = predict_largest(points, "bits")
    assert (found.size, found.flops, found.law) == ("small", 1.6e15, "power law")
    assert found.predicted == pytest.approx(found.measured, rel=1e-3) and abs(found.error) < 1e-3
    worse = [point._replace(losses={"bits": 1.1 * point.losses["bits"]}) for point in points[-3:]]
    other = predict_largest([*points[:-3], *worse], "bits")
    assert other.predicted == found.predicted and other.measured == pytest.approx(1.1 * found.measured)
    assert other.error == pytest.approx(1 / 1.1 - 1, rel=1e-3)


def test_largest_runs_are_predicted_by_the_trend_of_few_others():
    sizes = {"nano": 1e6, "micro": 2.5e6, "mini": 6e6}
    found = predict_largest(comparison(line(8, -0.06), 0.003, sizes=sizes), "bits")
    assert (found.size, found.law) == ("mini", "trend")
    assert found.interval.low < found.measured < found.interval.high
    assert found.predicted == pytest.approx(line(8, -0.06)(1e6, 1.6e9 / 6), rel=0.01)


def test_single_size_cannot_be_predicted():
    with pytest.raises(InputError, match="all runs have the size a, so nothing predicts it; add runs of smaller sizes"):
        predict_largest(comparison(LAW.predict, sizes={"a": 1e6}), "bits")


# Coverage


def parity_trial(noise, seeds, direction="less"):
    sign = -1 if direction == "less" else 3

    def trial(random):
        first, second = (comparison(line(8, 0.06 * sign, one), noise, random, seeds) for one in (1.0, 0.5))
        found = parity_ratio(first, second, "bits", direction)
        return {"ratio": (found.interval, 0.5)}

    return trial


def iso_flop_trial(noise, seeds):
    def trial(random):
        found = fit_iso_flop(comparison(bowl, noise, random, seeds, budgets=(4e14, 1.2e15, 3.6e15)), "bits")
        minima = {str(b.flops): (b.interval, np.sqrt(b.flops) / 10) for b in found.budgets}
        return {"exponent": (found.interval, 0.5), **minima}

    return trial


def power_law_trial(noise, seeds):
    def trial(random):
        points = comparison(LAW.predict, noise, random, seeds)
        laws = refit_power_law(points, "bits", resampled_log_losses(points, "bits", random))
        held_out = predict_largest(points, "bits")
        return {
            **{name: (interval(getattr(laws, name)), getattr(LAW, name)) for name in (*LAW._fields, "exponent")},
            "larger": (interval(laws.predict(3e7, 5e8)), LAW.predict(3e7, 5e8)),
            "held out": (held_out.interval, held_out.measured),
        }

    return trial


@pytest.mark.parametrize("trial", [parity_trial(0.005, 3), parity_trial(0.005, 3, "more"), iso_flop_trial(0.005, 3)])
def test_intervals_contain_the_truth(trial):
    assert min(shares_inside(trial, 60).values()) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, (3, 3, 3, 1)])
@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_intervals_of_ratios_and_minima_contain_the_truth(noise, seeds):
    shares = shares_inside(parity_trial(noise, seeds), 200) | shares_inside(iso_flop_trial(noise, seeds), 200)
    assert min(shares.values()) >= 0.9


@pytest.mark.slow
def test_intervals_of_power_laws_contain_the_truth(monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 100)
    assert min(shares_inside(power_law_trial(0.005, 3), 40).values()) >= 0.9


def test_import_needs_no_torch():
    code = "import sys, lit_transfusion.studies.scaling.held_out; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
