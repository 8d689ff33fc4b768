"""The params of a short training of a small network on random latents, for tests of how it breaks off and goes on."""

CHANGES = {
    "compute.device": "cpu",
    "compute.threads": 1,
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "pretrain.depth": 2,
    "pretrain.steps": 60,
    "pretrain.batch_size": 8,
    "pretrain.grad_accumulation": 2,
    "pretrain.warmup_steps": 5,
    "pretrain.checkpoint_every": 7,
    "pretrain.evaluate_every": 10,
}
SAMPLES = 37
"""Captioned latents to train on."""
