"""The table that a run ends with: readable digits, and no claim that the scores do not carry."""

import io
from typing import Any

from rich.console import Console

from flows.building.model_table import brief_rows, model_rows, print_models, too_short_to_learn


def record(name: str, low: float, high: float, **more: Any) -> dict[str, Any]:
    score = {"overall": (low + high) / 2, "low": low, "high": high}
    best = {"1": score, "4": {"overall": 0.74195, "low": 0.7, "high": 0.8}}
    base = {"name": name, "depth": 8, "parameters": 3_204_112, "heldout_loss": 0.39351907, "scorer": "geneval"}
    return base | {"score": score, "best_of": best} | more


def rows_of(*models: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a run in which noise scores 0.1."""
    return model_rows({"models": models, "controls": {"noise": more_noise()}})


def test_rows_have_readable_digits_and_leave_out_what_was_not_measured() -> None:
    first, second = rows_of(record("grown", 0.4, 0.6, seconds_per_picture=0.094414), record("pruned-3", 0, 0.1))
    assert first == {
        "model": "grown",
        "blocks": "8",
        "parameters": "3.20 M",
        "held-out loss": "0.394",
        "GenEval [95 %]": "★ 0.500 [0.400, 0.600]",
        "best of 4": "0.742",
        "seconds a picture": "0.0944",
    }
    assert second["seconds a picture"] == ""


def test_a_narrow_table_begins_with_what_one_chooses_a_model_by() -> None:
    best = {str(n): {"overall": n / 20} for n in (1, 2, 4, 16)}
    grown = record("grown", 0.4, 0.6, seconds_per_picture=0.1, best_of=best, distance={"value": 2.0})
    models = [record("pruned-3", 0, 0.1), grown]
    first, second = brief_rows({"models": models, "controls": {"noise": more_noise()}})
    assert list(first) == list(second)
    assert list(second.items())[:5] == [
        ("model", "grown"),
        ("GenEval [95 %]", "★ 0.500 [0.400, 0.600]"),
        ("best of 16", "0.800"),
        ("parameters", "3.20 M"),
        ("seconds a picture", "0.100"),
    ]
    assert list(second)[5:] == ["blocks", "held-out loss"] and first["seconds a picture"] == ""


def test_a_score_by_matching_is_nowhere_called_geneval() -> None:
    more = {"scorer": "matching", "distance": {"value": 12.345, "low": 11, "high": 13}, "clip_score": 0.61}
    (row,) = rows_of(record("grown", 0.4, 0.6, **more))
    assert row["Matching [95 %]"] == "0.500 [0.400, 0.600]" and (row["distance"], row["CLIP score"]) == (
        "12.3",
        "0.610",
    )
    warned = too_short_to_learn({"models": [record("grown", 0.1, 0.3, **more)], "controls": {"noise": more_noise()}})
    assert warned.startswith("Matching") and "GenEval" not in warned + str(row)


def more_noise() -> dict[str, float]:
    return {"overall": 0.1, "low": 0.0, "high": 0.2}


def test_a_run_whose_grown_model_scores_as_noise_does_is_called_too_short() -> None:
    controls = {"noise": more_noise()}
    overlaps, stands_out = record("grown", 0.15, 0.3), record("grown", 0.21, 0.4)
    assert "held-out losses" in too_short_to_learn({"models": [overlaps], "controls": controls})
    assert too_short_to_learn({"models": [stands_out], "controls": controls}) == ""


def test_a_piped_table_is_plain_text_with_a_line_for_each_model_and_the_report_last() -> None:
    piped = Console(file=io.StringIO(), highlight=False, width=140)
    models = [record("grown", 0.3, 0.5), record("a_name_of_more_letters", 0.4, 0.6)]
    print_models(
        {"models": models, "controls": {"noise": more_noise()}}, "/a/folder/with [brackets]/report.html", piped
    )
    written = piped.file.getvalue()
    assert "\x1b" not in written
    lines = [line.rstrip() for line in written.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["model", "grown", "a_name_of_more_letters", "GenEval", "report:"]
    assert "highest for a_name_of_more_letters. Its 95 % interval meets that of grown" in lines[-2]
    assert lines[-1] == "report: /a/folder/with [brackets]/report.html"


def test_a_star_marks_the_best_score_or_the_best_loss_of_a_run_too_short_for_scores() -> None:
    models = (record("grown", 0.4, 0.6, heldout_loss=0.5), record("pruned-3", 0.3, 0.5, heldout_loss=0.4))
    assert [row["GenEval [95 %]"][0] for row in rows_of(*models)] == ["★", "0"]
    short = model_rows({"models": models, "controls": {"noise": {"overall": 0.4, "low": 0.3, "high": 0.5}}})
    assert [row["held-out loss"] for row in short] == ["0.500", "★ 0.400"]
    assert not any("★" in row["GenEval [95 %]"] for row in short)
    assert not any("★" in cell for row in rows_of(models[0]) for cell in row.values())
