"""From the video of somebody who walks to what the networks look at. Importing this package alone imports no torch."""
