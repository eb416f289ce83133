"""What a run tells: log.jsonl, messages, progress, trackers."""
