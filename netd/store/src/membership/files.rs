//! Secret files: written whole, private to root, refused when others can read them.
