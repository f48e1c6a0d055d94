"""HTTP/2 (RFC 9113): the codec is pure, the shells beside it move bytes."""
