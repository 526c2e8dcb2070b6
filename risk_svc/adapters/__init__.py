"""What stands behind risk_svc's ports in production."""
