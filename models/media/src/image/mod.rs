//! The still and animated image formats; each file writes one and reads its metadata back.

pub(crate) mod folder;
pub(crate) mod gif;
pub(crate) mod palette;
pub(crate) mod png;
pub(crate) mod sheet;
pub(crate) mod webp;
