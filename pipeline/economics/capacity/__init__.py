"""How many servers a traffic takes: a simulation of their queues, fitted to a load test."""
