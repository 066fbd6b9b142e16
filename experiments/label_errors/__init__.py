"""Are planted label errors found in what a network that memorized them has learned?"""
