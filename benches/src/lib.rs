//! What the benches share: cases to time and the limits of the machine.

pub mod model;
pub mod peak;
pub mod product;
pub mod site;
