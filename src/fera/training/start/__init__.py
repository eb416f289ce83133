"""What comes before the first step: the base, pictures, class pictures, kappa, the router's start."""
