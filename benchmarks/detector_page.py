def tables(r): return ""
def draw(r,p): pass
