"""The use cases of risk_svc and the ports they need."""
