"""Noisy neighbours, side by side: the gateway's dispatching and simulated engines on a virtual clock."""
