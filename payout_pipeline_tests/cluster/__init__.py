"""The parts of `make test-cluster`: services on loopback ports, and the machines that use them."""
