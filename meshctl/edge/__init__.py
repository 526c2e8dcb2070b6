"""The edge: Envoy's configuration, its development certificate and its development tokens."""
