"""Coupons as facts and rules: no I/O, no clock, no identifiers of its own making."""
