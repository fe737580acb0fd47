"""What tokens cost, and what hardware allows at most."""
