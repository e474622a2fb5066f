//! H.264 in MP4: [`color`] makes planes of RGB, [`encode`] makes access units of planes, [`write`] puts
//! them into a file behind the index that [`moov`] builds, [`tags`] stores and reads the metadata.

pub(crate) mod color;
pub(crate) mod encode;
pub(crate) mod moov;
pub(crate) mod tags;
#[cfg(test)]
mod tests;
pub(crate) mod write;
