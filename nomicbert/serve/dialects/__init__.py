"""The protocols, a file each: a body -> what is wanted; rows -> the bytes of an answer."""
