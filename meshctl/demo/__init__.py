"""The demonstration: the life of coupons on the real stack, each step printed and checked."""
