"""Turns: the model is asked, its calls are made, until there is nothing more to do; and the limits of that."""
