"""Operations worth fusing, one file each: the plain definition, and what runs instead of it."""
