"""How much of the noise of labels is left in what a network predicts, and when can that be foretold?"""
