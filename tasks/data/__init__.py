"""Pictures, captions, shards and cached encodings."""
