"""What an index is made of: bytes on disk, those who write them, and the questions they answer."""
