"""`make demo`: the whole product in a cluster on this machine, told step by step."""
