"""Tests; a package of its own, since torch-fidelity installs another of this name."""
