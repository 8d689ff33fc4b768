"""What a training run says of its speed: by hand, on a clock that the test moves."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from model.network_flops import training_flops
from tasks.params.params_files import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training import training_speed
from tasks.training.device_peaks import peak_flops, peak_of
from tasks.training.training_batch import NoisedBatch
from tasks.training.training_loop import LOG_EVERY, Trainer
from tasks.training.training_speed import TrainingSpeed
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES


def batch_of(samples: int, side: int, text_tokens: int) -> NoisedBatch:
    latents, text = torch.zeros(samples, 3, side, side), torch.zeros(samples, text_tokens, 6)
    return NoisedBatch(latents, latents, torch.zeros(samples), text, text[..., 0] > 0)


def test_rates_are_what_was_taken_in_over_the_time_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(training_speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training_speed, "peak_flops", lambda *_: 1e6)
    config = small_network(1).config
    speed = TrainingSpeed(config, "cpu", "bfloat16")
    for count in (1, 2):  # the second time as the first, since counting begins anew
        speed.add(batch_of(6, 4, 5), waited=1.0)
        speed.add(batch_of(2, 8, 7), waited=0.5)
        now[0] += 4.0
        measured = speed.measure()
        assert measured is not None, count
        assert measured.samples_per_second == (6 + 2) / 4
        assert measured.tokens_per_second == (6 * 16 + 2 * 64) / 4
        assert measured.data_wait == 1.5 / 4
        assert measured.mfu == (6 * training_flops(config, 16, 5) + 2 * training_flops(config, 64, 7)) / 4 / 1e6
    now[0] += 1.0
    assert speed.measure() is None


def test_without_a_known_peak_nothing_is_said_of_it() -> None:
    speed = TrainingSpeed(small_network(1).config, "cpu", "bfloat16")
    speed.add(batch_of(6, 4, 5), waited=0.0)
    measured = speed.measure()
    assert measured is not None and "MFU" not in str(measured) and "speed/mfu" not in measured.metrics()
    assert peak_flops("cpu", "bfloat16") is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_of_the_gpu_that_is_named_and_of_no_other(name: str, teraflops: int | None) -> None:
    assert peak_of(name) == (None if teraflops is None else teraflops * 1e12)


def test_speed_goes_to_mlflow_and_to_the_progress_line_and_not_to_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    write_params(tmp_path, CHANGES)
    params = load_params()
    with closing(open_spool(Path("spools"), "pretrain", tags={})) as spool:
        context = Context("pretrain", params, Path("out"), Path("state"), Tracker(spool), "cpu", 1)
        trainer = Trainer(context, small_network(1), paths.ENCODED, params.pretrain)
        for _ in range(LOG_EVERY):
            trainer.update()
        trainer.read_steps()
        rows = [json.loads(line) for line in spool.path.read_text().splitlines()]
    AcceleratorState._reset_state(reset_partial_state=True)
    sent = {name: row["values"][name] for row in rows if row["kind"] == "metrics" for name in row["values"]}
    speeds = {name for name in sent if name.startswith("speed/")}
    assert speeds == {
        "speed/samples_per_second",
        "speed/tokens_per_second",
        "speed/data_wait",
        "speed/peak_memory_bytes",
    }
    assert sent["speed/tokens_per_second"] == pytest.approx(16 * sent["speed/samples_per_second"])
    assert all(part in trainer.note for part in ("loss ", "gradient norm ", "samples/s", "waiting for data"))
    assert set(trainer.history.training[0]) == {"step", "samples", "loss", "learning_rate", "grad_norm"}
