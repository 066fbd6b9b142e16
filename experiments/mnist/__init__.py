"""Does it help to make images of one class similar in the network's eyes, while it is trained?"""
