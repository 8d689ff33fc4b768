"""The SANA-1.5 network, its autoencoder and text encoder, and what is done to them: sampling, growth, pruning, files.

The folder may import torch, transformers, diffusers and `kernels`, and nothing of `tasks` or `flows`. It knows neither
params.yaml nor Prefect, MLflow or DVC.
"""
