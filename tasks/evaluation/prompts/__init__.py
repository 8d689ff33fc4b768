"""The prompts of the evaluation and of the judge's training, in GenEval's schema.

`published/` holds GenEval's own file of class names.
"""
