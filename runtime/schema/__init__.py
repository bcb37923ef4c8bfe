"""JSON schemas: made from types and docstrings, and values held against them."""
