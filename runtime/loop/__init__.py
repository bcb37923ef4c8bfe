"""Turns: the model is called and its tool calls are made, until the agent has nothing more to do or a limit is
reached."""
