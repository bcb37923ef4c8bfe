"""JSON schemas: making them from types and docstrings, and checking values against them."""
