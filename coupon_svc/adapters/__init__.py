"""The coupon service's ports on real parts: MySQL, risk_svc, keys."""
