"""The SANA-1.5 network and what is done to it: sampling, growth, importance, pruning, checkpoints."""
