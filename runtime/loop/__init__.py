"""Turns: the model is asked, its tool calls are made, until there is nothing more to do or a limit is met."""
