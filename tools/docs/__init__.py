"""The docs site: pages of the notebooks as they are stored, and of the package as its source stands. Nothing is executed."""
