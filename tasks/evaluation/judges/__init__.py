"""The judge of best of N: a small network trained here, or a published vision-language model.

`judge_choice.py` opens the one that an experiment has.
"""
