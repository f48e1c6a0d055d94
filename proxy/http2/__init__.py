"""HTTP/2 (RFC 9113) without TLS: the codec is pure, the shells move bytes between it and exchanges."""
