"""The admin of hosts, pools, prices and the books."""

from capacity.admin import enrolment, hosts, invoices, pools, reservations, rollups, supply, usage

__all__ = ["enrolment", "hosts", "invoices", "pools", "reservations", "rollups", "supply", "usage"]
