"""Untrusted data from outside, made safe where it comes in: JSON parsed within limits, text made valid UTF-8, the
arguments of tool calls, one spelling for each value. Functions here raise only `ValueError`, and take a bounded time.
"""
