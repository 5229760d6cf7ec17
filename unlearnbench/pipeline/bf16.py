"""bf16"""
LEAST = 0.99
LOSSES = {}
