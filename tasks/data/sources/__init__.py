"""Where pictures and captions come from: rendered scenes, a folder of files, or WebDataset shards.

A source of files lists candidates without opening them. Reading one gives its picture and caption, or a `Reject`.
"""
