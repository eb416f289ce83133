"""What a trace of routing says, as numbers and plots."""

from fera.traces.curves import RoutingCurves, routing_curves, save_csv

__all__ = ["RoutingCurves", "routing_curves", "save_csv"]
