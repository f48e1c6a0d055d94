"""Where endpoints come from: Consul, the control server's registry, or a file."""
