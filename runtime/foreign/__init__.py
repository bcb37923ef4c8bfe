"""Data from outside, made sound where it comes in: JSON within bounds, texts that UTF-8 can write, arguments of
calls, and values in one spelling. Nothing here raises anything but `ValueError`, or takes time without a bound.
"""
