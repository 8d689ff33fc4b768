"""The stages of the experiment and the commands beside them, one module each: `python -m tasks.<stage>`.

`stages.py` is the table of stages, and `side_by_side.py` draws for the page of `flows.demo`. The rooms below hold what
stages are made of; tasks import `model` and `kernels`.
"""
