"""Training pictures: found (`sources`), checked, sized, captioned, masked, and encoded (`cache`)."""
