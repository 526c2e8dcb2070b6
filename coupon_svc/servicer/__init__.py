"""The gRPC services of coupon_svc: protobuf to domain and back, one use-case call per RPC."""
