"""Which packages there are: all below unlearnbench/, and methods/ and metrics/, which lie beside it.

All else is in pyproject.toml, whose list of packages could not be found and mapped at once.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["unlearnbench", "unlearnbench.*"]),
        "unlearnbench.methods",
        "unlearnbench.metrics",
    ]
)
