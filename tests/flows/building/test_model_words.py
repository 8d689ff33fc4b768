"""Descriptions of models say what each is, and call none the best where scores mean nothing."""

from typing import Any

import pytest

from flows.building.model_words import models_in_markdown, what_it_is


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small", "The small model of 3 blocks"),
        ("grown", "The grown model of 3 blocks"),
        ("pruned-3", "cut to 3 blocks and not trained since"),
        ("finetuned-3", "cut to 3 blocks and fine-tuned"),
        ("scratch-3", "of 3 blocks, trained from random weights"),
        ("sft-finetuned-3", "cut to 3 blocks and fine-tuned, after supervised fine-tuning"),
    ],
)
def test_each_kind_of_model_has_its_words(name: str, words: str) -> None:
    assert words in what_it_is(name, 3)


def test_no_model_of_a_run_that_was_too_short_is_called_the_best() -> None:
    def scored(name: str, low: float, high: float) -> dict[str, Any]:
        score = {"overall": (low + high) / 2, "low": low, "high": high}
        return {"name": name, "depth": 3, "parameters": 9, "heldout_loss": 1, "scorer": "matching", "score": score}

    noise = {"overall": 0.1, "low": 0.0, "high": 0.2}
    short = {"models": [scored("grown", 0.1, 0.3), scored("small", 0.3, 0.4)], "controls": {"noise": noise}}
    assert "Matching is highest" not in models_in_markdown(short) and "too short" in models_in_markdown(short)
    learned = {"models": [scored("grown", 0.3, 0.5), scored("small", 0.5, 0.6)], "controls": {"noise": noise}}
    assert models_in_markdown(learned).startswith("Matching is highest for small.")
