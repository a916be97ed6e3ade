"""What a person looks at after a run: overlay videos and one self-contained HTML page."""
