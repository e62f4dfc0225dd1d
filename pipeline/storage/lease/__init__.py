"""Exclusive use of a folder across machines: a lease with heartbeats, and its fence for workers."""

from pipeline.storage.lease.fence import LEASE_FILE, LeaseInfo, check_lease
from pipeline.storage.lease.lease import Lease, LeaseHeldError

__all__ = ["LEASE_FILE", "Lease", "LeaseHeldError", "LeaseInfo", "check_lease"]
