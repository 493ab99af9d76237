"""Measuring what requests cost an engine, and up to which load it keeps its objectives.

The agent does it, beside the engine and by order (``worker.spec.CalibrationOrder``); the control plane judges what was
measured. ``manager`` is what the supervisor sees, ``measure`` the course of a measurement, in a thread of its own.
"""
