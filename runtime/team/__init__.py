"""Agents that run agents: nested streams, delegation, agents in the background."""
