"""The admin of what runs, what was decided about it, and what broke."""

from serving.admin import deployments, history, providers

__all__ = ["deployments", "history", "providers"]
