"""The curves of a study: what is read from the files of a run, the mean over seeds, and the labels."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny_study import write_metrics

from lit_transfusion.studies import curves
from lit_transfusion.studies.curves import Curve, apart, band_of, curves_of, plot_curves
from lit_transfusion.studies.plan import ArmPlan

TEXT, IMAGES = "val/loss_text", "val/loss_image"


def test_curve_continues_over_starts_and_uses_the_later_one(finished):
    job = finished(losses=[(i, 10.0 - i, 1.0) for i in (2, 4, 6)])
    both = {TEXT: 1.5, IMAGES: 0.5}
    for version in (10, 2):  # the tenth is after the second
        write_metrics(job, version, [{"step": 5, **both, TEXT: version}, {"step": 7, **both}])
    assert curves_of(job) == {
        TEXT: ([2, 4, 6, 8], [8.0, 6.0, 10.0, 1.5]),
        IMAGES: ([2, 4, 6, 8], [1.0, 1.0, 0.5, 0.5]),
    }


@pytest.mark.parametrize("rows", [[], [{"step": 1, "train/loss": 2.0}], [{"step": 1, TEXT: "", IMAGES: ""}]])
def test_curve_of_incomplete_metrics_is_empty(make_job, rows):
    job = make_job()
    write_metrics(job, 0, rows)
    assert curves_of(job) == curves_of(make_job("both")) == {}


def test_a_run_on_texts_alone_and_one_on_a_mix_have_curves(make_job):
    text, mix = make_job("text"), make_job("mix")
    write_metrics(text, 0, [{"step": 1, TEXT: 2.0}])
    write_metrics(
        mix, 0, [{"step": 1, "val/books/loss_text": 2.0, "val/books/loss": 2.0, "val/photos/loss_image": 0.5}]
    )
    assert curves_of(text) == {TEXT: ([2], [2.0])}
    assert curves_of(mix) == {"val/books/loss_text": ([2], [2.0]), "val/photos/loss_image": ([2], [0.5])}


def test_band_is_mean_and_range_at_the_steps_of_all_seeds():
    band = band_of([Curve([1, 2, 4], [3.0, 2.0, 1.0]), Curve([2, 4, 8], [4.0, 2.0, 9.0])])
    assert [part.tolist() for part in band] == [[2, 4], [3.0, 1.5], [2.0, 1.0], [4.0, 2.0]]
    assert not len(band_of([]).steps) and not len(band_of([Curve([1], [1.0]), Curve([2], [1.0])]).steps)


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.11, 0.12], [0.97, 0.98, 0.99], [0.0, 0.0, 1.0], [0.2] * 10])
def test_labels_keep_their_distance_and_stay_inside(heights):
    moved = apart(heights, 0.1)
    assert min(np.diff(moved), default=1) > 0.1 - 1e-9 and max(moved) <= 1
    assert apart([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]


def test_each_kind_of_loss_has_its_own_panels(finished, make_job, tmp_path, monkeypatch):
    """Errors of diffusion and of codes are not on one axis, and an arm of texts is only in the panels of text."""
    jobs = [finished(arm, seed) for arm in ("diffused", "coded") for seed in (0, 1)]
    text = make_job("text")
    write_metrics(text, 0, [{"step": 1, TEXT: 2.0, "val/books/loss_text": 3.0}, {"step": 4, TEXT: 1.0}])
    plans = [
        ArmPlan(arm, arm, 1, 1, 5, 90.0, 4e6, None, images_are_tokens=arm == "coded")
        for arm in ("diffused", "coded", "text")
    ]
    made = []
    monkeypatch.setattr(curves, "Figure", lambda **options: made.append(Figure(**options)) or made[0])
    plot_curves([*jobs, text], plans, tmp_path / "curves.png")
    left = made[0].axes[::2]
    assert [panel.get_ylabel() for panel in left] == [
        "text: cross-entropy",
        "text: cross-entropy, of books",
        "images: diffusion loss",
        "images: cross-entropy of codes",
    ]
    assert [sorted(label.get_text() for label in panel.texts) for panel in left] == [
        ["coded", "diffused", "text"],
        ["text"],
        ["diffused"],
        ["coded"],
    ]
    (line,) = left[2].lines
    assert line.get_xdata().tolist() == [2 * 90.0, 5 * 90.0] and line.get_ydata().tolist() == [1.0, 0.5]
    plot_curves([], plans, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000
