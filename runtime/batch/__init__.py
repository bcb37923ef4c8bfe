"""Many sessions, a few runs at a time."""
