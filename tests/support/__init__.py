"""What tests share: processes, ports, real programs, fault injection."""
