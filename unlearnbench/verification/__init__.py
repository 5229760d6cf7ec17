"""Check that numbers can be trusted: conformance, selfcheck, verify and validate.

It may import everything but `tune`, `report` and `cli`.
"""
