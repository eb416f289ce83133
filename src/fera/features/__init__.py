"""Networks that look at pictures, and distances between what they see."""
