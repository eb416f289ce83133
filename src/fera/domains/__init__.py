"""Domains of data: how far they lie apart, and in which order to visit them."""
