"""The use cases of the coupon service, one module each, on the ports of `ports`."""
