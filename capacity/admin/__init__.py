"""The admin of hosts, pools, prices and the books."""

from capacity.admin import hosts, pools, usage

__all__ = ["hosts", "pools", "usage"]
