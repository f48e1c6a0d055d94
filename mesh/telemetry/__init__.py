"""What the mesh tells about itself: metrics, spans and access logs."""
