"""What risk_svc decides, without I/O: operations, windows and the rules that tie them together."""
