"""Pictures drawn while a network trains change no output, are the same after a resume, and are found in the spool."""

import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from model.autoencoder import build_autoencoder
from tasks.computing import ranks
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.pretrain import run as run_pretrain
from tasks.runtime.context import Context
from tasks.stages import stage_of
from tasks.system import paths
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training import preview
from tasks.training.training_loop import Trainer
from tests.helpers.drawing_workspace import all_bytes
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES, BrokenOff, spooled, stopping_at
from tests.kernels.processes import run_processes

SHORT = {"pretrain.steps": 24, "sampling.steps": 2, "sampling.batch_size": 10}
NO_PICTURES = {"pretrain.preview_every": 0}
PICTURES = {"pretrain.preview_every": 8}
STATE = Path("state")
Sheets = dict[int, bytes]
"""The PNG files that a training logged, by the number of steps that had been made."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    torch.manual_seed(0)
    build_autoencoder(3, (12, 12), 1).save(paths.AUTOENCODER)
    return tmp_path


def train(name: str, resume: bool = False, **changes: object) -> tuple[dict[str, bytes], Sheets]:
    """The files that stage `pretrain` writes, and the sheets in its spool. To resume it finds the states before."""
    if not resume:
        shutil.rmtree(STATE, ignore_errors=True)
    write_params(Path.cwd(), CHANGES | SHORT | {key.replace("__", "."): value for key, value in changes.items()})
    params, out, spools = load_params(), Path(name), Path(f"{name}-spool")
    out.mkdir()
    with closing(open_spool(spools, "pretrain", tags={})) as spool:
        stage = stage_of("pretrain", params)
        run_pretrain(Context(stage.name, params, out, STATE, Tracker(spool), "cpu", 1))
    return all_bytes(out), sheets(spools)


def sheets(spools: Path) -> Sheets:
    (images,) = spools.glob("*.images") if any(spools.glob("*.images")) else (spools,)
    logged = [row for row in spooled(spools) if row["kind"] == "image"]
    assert {row["key"] for row in logged} <= {"preview"}
    assert len({row["step"] for row in logged}) == len(logged)
    return {row["step"]: (images / row["file"]).read_bytes() for row in logged}


def test_training_writes_the_same_bytes_with_and_without_pictures() -> None:
    without, none = train("without", **NO_PICTURES)
    generator = torch.get_rng_state()
    with_pictures, drawn = train("with", **PICTURES)
    assert none == {} and list(drawn) == [8, 16, 24]
    assert with_pictures == without
    assert len(set(drawn.values())) == 3  # the network has changed between them
    assert torch.equal(torch.get_rng_state(), generator)  # both trainings left the global generator alike


def test_training_in_bfloat16_writes_the_same_bytes_with_and_without_pictures() -> None:
    bfloat16 = {"compute.dtype": "bfloat16"}
    assert train("with", **bfloat16 | PICTURES)[0] == train("without", **bfloat16 | NO_PICTURES)[0]


@pytest.mark.parametrize("step", (8, 15, 19))
def test_a_resumed_training_draws_the_pictures_of_one_that_never_stopped(step: int) -> None:
    """A state is saved every four steps. The pictures of a step are drawn after its state is copied."""
    every_four = PICTURES | {"pretrain.checkpoint_every": 4}
    files, expected = train("uninterrupted", **every_four)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(Trainer, "update", stopping_at(step))
        train("broken off", **every_four)
    before = sheets(Path("broken off-spool"))
    resumed, after = train("resumed", resume=True, **every_four)
    assert resumed == files
    assert before and after and before | after == expected
    assert all(after[step] == before[step] for step in before.keys() & after.keys())


def test_a_stop_between_a_checkpoint_and_its_pictures_loses_none() -> None:
    at_eight = PICTURES | {"pretrain.checkpoint_every": 8}
    _, expected = train("uninterrupted", **at_eight)

    def stop(trainer: Trainer) -> None:
        trainer.states.wait()
        raise BrokenOff

    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(Trainer, "draw_preview", stop)
        train("broken off", **at_eight)
    assert sheets(Path("broken off-spool")) == {}
    assert train("resumed", resume=True, **at_eight)[1] == expected


def test_a_sheet_that_a_run_has_logged_is_not_logged_again(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save("sheet.png")
    with closing(open_spool(tmp_path / "spool", "pretrain", tags={})) as spool:
        Tracker(spool).log_image("preview", Path("sheet.png"), 100)
        for _ in range(2):
            tracker = Tracker(spool)  # as a stage that is run again within the same run has it
            tracker.log_image("preview", Path("sheet.png"), 100)
            tracker.log_image("preview", Path("sheet.png"), 200)
    assert [row["step"] for row in spooled(tmp_path / "spool") if row["kind"] == "image"] == [100, 200]


def test_the_sheet_and_its_prompts_have_names_that_a_person_finds() -> None:
    _, drawn = train("with", **PICTURES)
    logged = [row for row in spooled(Path("with-spool")) if row["kind"] in ("image", "artifact")]
    assert [row.get("key", row["file"]) for row in logged] == ["preview_prompts.txt", *["preview"] * 3]
    (images,) = Path("with-spool").glob("*.images")
    captions = EncodedDataset(paths.ENCODED, "heldout").captions[:12]
    assert (images / "preview_prompts.txt").read_text().splitlines() == captions
    (images / "last.png").write_bytes(drawn[24])
    page = np.asarray(Image.open(images / "last.png"))
    assert page.shape == (2 * 128 + 4, 6 * 128 + 5 * 4, 3)
    pictures = [
        page[row * 132 : row * 132 + 128, column * 132 : column * 132 + 128] for row in (0, 1) for column in range(6)
    ]
    assert len({picture.tobytes() for picture in pictures}) == 12  # each has its own noise and caption


def test_without_an_autoencoder_one_line_says_why_there_are_no_pictures(capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(paths.AUTOENCODER)
    without, drawn = train("without", **PICTURES)
    lines = [line for line in capfd.readouterr().out.splitlines() if "pictures" in line]
    assert drawn == {} and without == train("none", **NO_PICTURES)[0]
    assert lines == [
        "pretrain: no pictures while it trains (preview_every): outputs/autoencoder has no autoencoder to decode them: "
        "run the stage autoencoder"
    ]


def test_a_gpu_without_memory_for_pictures_trains_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    expected, _ = train("expected", **NO_PICTURES)
    monkeypatch.setattr(preview, "sample", no_memory)
    files, drawn = train("out", **PICTURES)
    assert files == expected and drawn == {}
    assert capfd.readouterr().out.count("the GPU has no memory left for them") == 1


def train_on_ranks(folder: Path) -> None:
    params = load_params(folder / PARAMS_FILE)
    number, count = str(ranks.rank()), str(ranks.world_size())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    for parallelism in ("ddp", "fully_shard"):
        compute = replace(params.compute, parallelism=parallelism, processes_per_node=ranks.world_size())
        for every in (0, params.pretrain.preview_every):
            name = f"{parallelism}-{every}"
            changed = replace(params, compute=compute, pretrain=replace(params.pretrain, preview_every=every))
            out = folder / f"{name}-out"
            if ranks.rank() == 0:
                out.mkdir()
            with closing(open_spool(folder / f"{name}-spool-{ranks.rank()}", "pretrain", tags={})) as spool:
                run_pretrain(Context("pretrain", changed, out, folder / f"{name}-state", Tracker(spool), "cpu", 1))
            AcceleratorState._reset_state(reset_partial_state=True)


def test_two_ranks_draw_under_ddp_and_say_that_shards_do_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adamw = {"pretrain.optimizer": "adamw", "pretrain.bias_correction": False, "compute.dtype": "float32"}
    write_params(tmp_path, CHANGES | SHORT | PICTURES | adamw)
    run_processes(2, tmp_path, train_on_ranks)
    drawn = sheets(tmp_path / "ddp-8-spool-0")
    assert list(drawn) == [8, 16, 24] and sheets(tmp_path / "ddp-8-spool-1") == {}
    assert sheets(tmp_path / "fully_shard-8-spool-0") == {}
    for parallelism in ("ddp", "fully_shard"):
        assert all_bytes(tmp_path / f"{parallelism}-8-out") == all_bytes(tmp_path / f"{parallelism}-0-out")
    assert "the parameters are sharded, and drawing would need all ranks" in capfd.readouterr().out
