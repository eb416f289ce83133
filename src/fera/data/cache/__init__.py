"""Encoded pictures and captions on disk: `encoder` fills the cache, `cache` and `shards` keep it, `encoded` reads batches."""
