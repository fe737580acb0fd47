"""What a repository is made of and by what, as standards have it, and signatures over that."""
