"""Electricity and CO2 of a computation, with every constant's source."""
