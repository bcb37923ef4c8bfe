"""Models that come with the runtime. Each is imported from its own module, for each needs an extra of its own."""
