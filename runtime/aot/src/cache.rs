//! Compiled functions kept on disk by their text, so that nothing is compiled twice.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cuda_kernels::{Compiled, Resources, Source};
use kernels::cuda::Gpu;
use xxhash_rust::xxh3::Xxh3;

/// First bytes of an entry; any change of its form is another.
const MAGIC: [u8; 8] = *b"KINOCUB1";

/// A folder of compiled functions. An entry that cannot be read is compiled again, and one that cannot
/// be written is not kept: the cache never fails a compilation.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, which need not exist.
    pub fn in_folder(folder: PathBuf) -> Cache {
        Cache { folder }
    }

    fn path(&self, source: &Source, gpu: Gpu) -> PathBuf {
        let mut hash = Xxh3::new();
        for part in [gpu.code_name().as_str(), cuda_kernels::COMPILER, &source.text] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        self.folder.join(format!("{:032x}.cuda", hash.digest128()))
    }

    /// The compiled form of `source`, if it is kept whole.
    pub(crate) fn get(&self, source: &Source, gpu: Gpu) -> Option<Compiled> {
        decode(&fs::read(self.path(source, gpu)).ok()?)
    }

    /// Keeps `compiled`.
    pub(crate) fn put(&self, source: &Source, gpu: Gpu, compiled: &Compiled) {
        let _ = write(&self.path(source, gpu), &encode(compiled));
    }
}

/// Beside its name, then renamed: another process may read meanwhile.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

fn encode(compiled: &Compiled) -> Vec<u8> {
    let Resources { registers, spill_bytes, stack_bytes, static_shared_bytes } = compiled.resources;
    let mut body: Vec<u8> = Vec::new();
    for number in [registers, spill_bytes, stack_bytes, static_shared_bytes] {
        body.extend(number.to_le_bytes());
    }
    body.extend((compiled.ptx.len() as u64).to_le_bytes());
    body.extend(compiled.ptx.as_bytes());
    body.extend(&compiled.cubin);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(checksum(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Compiled> {
    let body = bytes.strip_prefix(&MAGIC)?;
    let (sum, body) = body.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != checksum(body) {
        return None;
    }
    let mut rest = body;
    let mut number = || {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        Some(u32::from_le_bytes(*head))
    };
    let resources = Resources {
        registers: number()?,
        spill_bytes: number()?,
        stack_bytes: number()?,
        static_shared_bytes: number()?,
    };
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (ptx, cubin) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some(Compiled { ptx: String::from_utf8(ptx.to_vec()).ok()?, cubin: cubin.to_vec(), resources })
}

fn checksum(body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(body);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_whole_or_not_at_all() {
        let resources =
            Resources { registers: 40, spill_bytes: 0, stack_bytes: 8, static_shared_bytes: 3 };
        let compiled = Compiled { ptx: ".version 8.0".to_owned(), cubin: vec![1, 2, 3], resources };
        let bytes = encode(&compiled);
        assert_eq!(decode(&bytes), Some(compiled));
        for at in 0..bytes.len() {
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None, "flipped at {at}");
        }
    }
}
