"""The admin of hosts, pools, prices and the books."""

from capacity.admin import enrolment, hosts, pools, supply, usage

__all__ = ["enrolment", "hosts", "pools", "supply", "usage"]
