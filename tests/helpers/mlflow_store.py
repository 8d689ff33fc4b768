"""What the MLflow store of the working directory holds."""

from mlflow.entities import Run

from tasks.tracking.mlflow_store import connect


def runs(name: str) -> list[Run]:
    client, experiment = connect()
    return client.search_runs([experiment], f"attributes.run_name = '{name}'")


def history(run: Run, key: str) -> list[tuple[int, float]]:
    client, _ = connect()
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
