"""Sidemesh's tests, by what they touch: unit, property, conformance, integration, e2e, bench."""
