"""The params of an experiment: sections that check themselves, and how they are read from `params.yaml`.

The modules here import `tasks.system`, and the names of choices from `model` and `kernels`.
"""
