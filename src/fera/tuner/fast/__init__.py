"""How a routed linear layer is computed in fewer calls, and nothing else: results are those of the plain form."""
