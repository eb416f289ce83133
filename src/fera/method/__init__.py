"""The method of the paper, in plain PyTorch: bands, indicator, router, consistency loss.

docs/method.md has the equations and says where each of them is.
"""
