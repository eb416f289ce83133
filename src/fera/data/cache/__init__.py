"""Encoded pictures and captions on disk: `encoder` fills the cache, `store` keeps files, `encoded` reads batches."""
