//! The program `kino`.
fn main() {}
