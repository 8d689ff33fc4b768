"""What MLflow's UI shows of the project's experiment when it is opened by one of these addresses.

MLflow keeps a shared view of the table of runs in a tag of the experiment, as JSON: a filter, an order and the columns.
"""

import json

RUNS_QUERY = "workflowType=machine_learning"
"""Opens the table of runs. Without it MLflow's UI shows pages for language models."""
MODELS_VIEW = "models"
SCORERS = ("geneval", "matching")
"""The scorers' names in params. A column is shown if a run has the metric."""
VIEW_TAG = f"mlflow.sharedViewState.{MODELS_VIEW}"


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
    """The value of `VIEW_TAG`."""
    numbers = [f"{scorer}/{end}" for scorer in SCORERS for end in ("overall", "low", "high")]
    numbers += ["best_of/4", "best_of/16", "heldout_loss", "seconds_per_picture"]
    columns = [f"params.`{name}`" for name in ("experiment", "depth", "parameters")] + [
        f"metrics.`{name}`" for name in numbers
    ]
    state = {
        "searchFilter": "attributes.run_name LIKE 'model %'",
        # In any order but that of time, MLflow lists nested runs flat and needs no click to show them.
        "orderByKey": "metrics.`heldout_loss`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
    }
    return json.dumps(state)
