"""The params of an experiment: sections that check themselves, and how they are read from `params.yaml`.

Imports `tasks.system`, and names of choices from `model` and `kernels`.
"""
