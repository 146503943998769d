"""Tasks at the size of the papers, a file each, for one GPU: see ``run_paper_size.py``."""
