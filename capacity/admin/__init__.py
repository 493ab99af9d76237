"""The admin of hosts, pools, prices and the books."""

from capacity.admin import enrolment, hosts, pools, usage

__all__ = ["enrolment", "hosts", "pools", "usage"]
