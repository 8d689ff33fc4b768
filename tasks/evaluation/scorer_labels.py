"""What each scorer is called where people read it. A score is never shown without the name of its scorer."""

SCORER_LABELS = {"geneval": "GenEval", "matching": "Matching"}
"""The name of each scorer on pages and in tables, by its name in params."""

SCORER_MEANINGS = {
    "geneval": "share of pictures that show what their prompt names, by GenEval's rules",
    "matching": "share of pictures whose own held-out caption is found among several, by a network that was trained on "
    "half of the captioned pictures and that no other stage uses; this is not GenEval",
}
"""What the number means, in one line, by the scorer's name in params."""
