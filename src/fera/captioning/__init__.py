"""Captions by a model that lies on this machine: which there are, and what they write."""
