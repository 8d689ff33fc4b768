"""Stages of the experiment: each module `tasks.<stage>` is one command and writes one output folder."""

import gc

# torch and transformers make a million objects that stay: looking through them for garbage as often as Python usually
# does takes a fifth of the time that a stage needs to start
gc.set_threshold(50_000)
