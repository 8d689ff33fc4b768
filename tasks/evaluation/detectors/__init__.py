"""Detectors find and name the objects of a picture: one for rendered scenes, and Mask2Former with CLIP.

`detector.py` says what the rules need of a detector.
"""
