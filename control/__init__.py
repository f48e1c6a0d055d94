"""The control plane: stores routing tables and pushes them to the sidecars over gRPC."""
