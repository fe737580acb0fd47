"""Describes a deployment of what was just built to the tools that run one."""
