"""The shim that some tools still ask for; everything stands in setup.cfg."""

from setuptools import setup

setup()
