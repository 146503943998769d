"""The machinery of the studies: what a study is, how its contests are held and kept, and what follows from them."""
