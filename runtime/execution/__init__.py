"""Running foreign code: calls on helper threads and on the event loop, toolsets, files for long results."""
