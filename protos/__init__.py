"""The gRPC contracts (``*.proto``) with their generated code beside them."""
