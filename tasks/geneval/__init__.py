"""GenEval: prompts, detectors, scoring rules, the judge and best of N."""
