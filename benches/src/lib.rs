//! Measuring: the work, the machine's limit, our side and its peers, in turns; `kino bench` is the program of it.
//!
//! Start at [`measure::Lab`]. [`product`] and [`site`] are for the criterion benches, which look at one kernel each.

mod error;
pub mod inputs;
pub mod measure;
pub mod ours;
pub mod product;
pub mod report;
mod side;
pub mod site;
pub mod synth;
pub mod work;

pub use error::Error;
pub use kernels::peak;
