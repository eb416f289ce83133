"""What any room may use, and that knows nothing of fera: files, hints, durations, strict JSON, progress."""
