"""What is called best is best by the report's own numbers, and what these leave open is said to be open."""

from typing import Any

import pytest

from tasks.reporting.best_model import Best, best_in_words, best_model


def model(name: str, score: float, loss: float, wide: float = 0.05) -> dict[str, Any]:
    ends = {"heldout_loss_low": loss - wide, "heldout_loss_high": loss + wide}
    overall = {"overall": score, "low": score - wide, "high": score + wide}
    return {"name": name, "score": overall, "heldout_loss": loss} | ends


def summary(*models: dict[str, Any], noise: float = 0.1) -> dict[str, Any]:
    return {"models": models, "controls": {"noise": {"overall": noise, "low": noise, "high": noise}}}


def test_the_best_has_the_highest_score_and_the_undecided_have_intervals_that_meet_its_own() -> None:
    run = summary(model("small", 0.3, 0.1), model("grown", 0.52, 0.2), model("pruned-3", 0.43, 0.3))
    assert best_model(run) == Best(("grown",), True, ("pruned-3",))
    apart = summary(model("small", 0.3, 0.1), model("grown", 0.52, 0.2), model("pruned-3", 0.41, 0.3))
    assert best_model(apart) == Best(("grown",), True, ())


def test_in_a_run_too_short_for_scores_the_best_has_the_lowest_held_out_loss_on_the_same_pictures() -> None:
    models = (model("grown", 0.5, 0.9), model("pruned-3", 0.6, 0.82), model("finetuned-3", 0.4, 0.7))
    run = summary(*models, model("sft-grown", 0.3, 0.1), noise=0.5)
    assert best_model(run) == Best(("finetuned-3",), False, ())
    near = summary(*models, model("scratch-3", 0.3, 0.79), noise=0.5)
    assert best_model(near) == Best(("finetuned-3",), False, ("scratch-3",))


def test_equal_models_are_best_together_and_one_alone_is_not_called_best() -> None:
    run = summary(model("small", 0.5, 0.5), model("grown", 0.5, 0.6), model("pruned-3", 0.2, 0.7))
    assert best_model(run) == Best(("small", "grown"), True, ())
    assert best_model(summary(model("grown", 0.5, 0.5))) is None


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (
            Best(("grown",), True, ("small", "pruned-3", "pruned-2")),
            "GenEval is highest for grown. Its 95 % interval meets those of small, pruned-3 and pruned-2, "
            "and does not tell them apart.",
        ),
        (
            Best(("small", "grown"), True, ("pruned-3",)),
            "GenEval is highest for small and grown, which are equal. Their 95 % intervals meet that of pruned-3, "
            "and do not tell them apart.",
        ),
        (
            Best(("finetuned-3",), False, ()),
            "Held-out loss is lowest for finetuned-3. No other model's 95 % interval meets its own.",
        ),
    ],
)
def test_the_sentence_claims_no_more_than_the_intervals(best: Best, words: str) -> None:
    assert best_in_words(best, "GenEval") == words
