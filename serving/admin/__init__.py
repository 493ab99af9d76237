"""The admin of what runs, what was decided about it, and what broke."""

from serving.admin import calibrations, deployments, history, providers

__all__ = ["calibrations", "deployments", "history", "providers"]
