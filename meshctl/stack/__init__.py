"""The local stack: private MariaDB, Redis, ZooKeeper, Envoy and the four services as child processes on loopback."""
