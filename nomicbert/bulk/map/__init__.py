"""The parts of a map: colours, labels, the page and the picture."""
