"""How a tool call is made: put together from pieces, checked, permitted, approved, run, recorded."""
