"""Times as people say them."""


def in_time(seconds: float) -> str:
    """A time that was measured: "45 s", "11 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about_time(seconds: float) -> str:
    """A time that is estimated: "about 45 s", "about 11 min", "about 2 h 05 min"."""
    if seconds < 90:
        return f"about {seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60} h {minutes % 60:02d} min"
