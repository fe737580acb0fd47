"""The objects of a deployment in a cluster, as trees; one file for each of its parts."""
