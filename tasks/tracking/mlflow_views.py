"""What MLflow's UI shows of the project's experiment when it is opened by one of these addresses.

MLflow keeps a shared view of the table of runs in a tag of the experiment, as JSON: a filter, an order and the columns
with their widths.
"""

import json

RUNS_QUERY = "workflowType=machine_learning"
"""Opens the table of runs. Without it MLflow's UI shows pages for language models."""
MODELS_VIEW = "models"
SCORERS = ("geneval", "matching")
"""The scorers' names in params. A column is shown if a run has the metric."""
VIEW_TAG = f"mlflow.sharedViewState.{MODELS_VIEW}"
NAME, CREATED, DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"
"""MLflow's own columns, which no view can hide. The first two stay at the left edge."""
FIRST_WIDTHS = {
    **{f"metrics.`{scorer}/overall`": 130 for scorer in SCORERS},
    **{f"metrics.`best_of/{n}`": 90 for n in (64, 16)},
    "params.`parameters`": 95,
    "metrics.`seconds_per_picture`": 155,
    "params.`depth`": 60,
    "metrics.`heldout_loss`": 105,
    "metrics.`best_of/4`": 85,
    "params.`experiment`": 110,
}
"""The columns by which one chooses a model, in their order, with their widths in pixels.

The largest N of the best of N is 64, 16 or 4 in the profiles gpu, default and smoke.
"""
INTERVAL_WIDTHS = {f"metrics.`{scorer}/{end}`": 125 for scorer in SCORERS for end in ("low", "high")}
"""The ends of the scores' intervals, which come last."""


def runs_path(experiment: str) -> str:
    """The path of the table of all runs in MLflow's UI."""
    return f"/#/experiments/{experiment}/runs?{RUNS_QUERY}"


def models_path(experiment: str) -> str:
    """The path of the table of models, with their sizes and scores as columns."""
    return f"{runs_path(experiment)}&viewStateShareKey={MODELS_VIEW}"


def run_path(experiment: str, run_id: str, page: str = "") -> str:
    """The path of a run in MLflow's UI, or of a page of it, such as `/artifacts/report.html`."""
    return f"/#/experiments/{experiment}/runs/{run_id}{page}?{RUNS_QUERY}"


def models_view() -> str:
    """The value of `VIEW_TAG`.

    A window of 1400 pixels shows all columns of a run of the default or the smoke profile but the scores' intervals.
    """
    chosen = {**FIRST_WIDTHS, **INTERVAL_WIDTHS}
    widths = {NAME: 160, CREATED: 82, **FIRST_WIDTHS, DURATION: 80, **INTERVAL_WIDTHS}
    state = {
        "searchFilter": "attributes.run_name LIKE 'model %'",
        # In any order but that of time, MLflow lists nested runs flat and needs no click to show them.
        "orderByKey": "metrics.`heldout_loss`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(chosen),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    return json.dumps(state)
