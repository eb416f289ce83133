"""Denoisers that draw videos or sound."""
