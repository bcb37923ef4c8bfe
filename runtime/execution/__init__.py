"""Code that is not ours: calls on helper threads and on the event loop, toolsets, files of long results."""
