"""Where the routing table and its whole history are kept."""
