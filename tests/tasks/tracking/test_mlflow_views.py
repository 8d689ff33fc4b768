"""The view of models fits an ordinary window, with the score first and its interval last."""

import json

from tasks.tracking.mlflow_views import CREATED, NAME, models_view

WINDOW = 1400
MARGINS = 328
"""The pixels of a window beside the columns: MLflow's menu, its margins, and the boxes that one ticks."""


def test_all_columns_but_the_intervals_of_a_scorer_fit_a_window() -> None:
    view = json.loads(models_view())
    order, widths = view["columnOrder"], view["columnWidths"]
    assert order[:3] == [NAME, CREATED, "metrics.`geneval/overall`"]
    other_profiles = ("metrics.`matching/overall`", "metrics.`best_of/64`")
    first = [name for name in order[: order.index("duration")] if name not in other_profiles]
    assert first[2:] == [
        "metrics.`geneval/overall`",
        "metrics.`best_of/16`",
        "params.`parameters`",
        "metrics.`seconds_per_picture`",
        "params.`depth`",
        "metrics.`heldout_loss`",
        "metrics.`best_of/4`",
        "params.`experiment`",
    ]
    assert sum(widths[name] for name in first) <= WINDOW - MARGINS
    assert all(name.endswith(("/low`", "/high`")) for name in order[order.index("duration") + 1 :])


def test_every_column_that_can_be_hidden_is_asked_for() -> None:
    view = json.loads(models_view())
    assert set(view["selectedColumns"]) == set(view["columnOrder"]) - {NAME, CREATED, "duration"}
