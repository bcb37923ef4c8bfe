"""Foreign code and what it leaves: calls on helper threads and on the event loop, toolsets, files of long results."""
