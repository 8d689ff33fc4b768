"""GenEval's published files, where they lie beside the project; tests that need them are skipped elsewhere."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "geneval"
PROMPTS = FOLDER / "evaluation_metadata.jsonl"
needs_published = pytest.mark.skipif(not FOLDER.is_dir(), reason="GenEval's published files are not here")
