"""Stages of the experiment: each module `tasks.<stage>` is one command and writes one output folder."""
