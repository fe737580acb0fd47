"""The store of artifacts: publishing, looking up, deploying and removing them."""
