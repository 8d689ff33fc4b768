"""Stages of the experiment: each module `tasks.<stage>` is one command and writes one output folder."""

import atexit
import gc

# torch, transformers and diffusers make a million objects that stay. Looking through them for garbage as often as
# Python usually does, and once more at the end, takes a third of the time that a short stage needs.
gc.set_threshold(50_000)
atexit.register(gc.freeze)
