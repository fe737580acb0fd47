"""What ``scripts/ray-proof`` runs: the application on two Ray nodes of this machine, under load."""
