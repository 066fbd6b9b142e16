"""How noisy are human ratings, told from one rating a text?"""
