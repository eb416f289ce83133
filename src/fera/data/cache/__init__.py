"""Encoded pictures and captions on disk: `encoder` fills it, `cache` and `shards` keep it, `encoded` reads batches."""
